package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// table prints rows under a heading, in columns.
func table(heading string, rows [][]string) {
	fmt.Printf("\n%s\n", heading)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		for _, cell := range row {
			_, _ = fmt.Fprint(w, cell, "\t") // the buffer takes everything
		}
		_, _ = fmt.Fprintln(w)
	}
	_ = w.Flush() // nothing can be done about a closed terminal
}

// seconds renders a duration with the same unit in every row.
func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// median and worst of some durations, of which there is at least one.
func median(ds []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return s[len(s)/2]
}

func worst(ds []time.Duration) time.Duration { return slices.Max(ds) }
