package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// maxDuration keeps sums of a few durations, which the relations between
// time-outs are made of, far from an overflow.
const maxDuration = 1e9 * time.Second

// ParseDuration reads a bare number as seconds, or a number with a unit.
func ParseDuration(s string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		if n < 0 || math.IsNaN(n) || n > maxDuration.Seconds() {
			return 0, fmt.Errorf("%q is out of range", s)
		}
		return time.Duration(n * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no duration; want %s", s, durations)
	}
	if d > maxDuration {
		return 0, fmt.Errorf("%q is out of range", s)
	}
	return d, nil
}

// ParseSize reads bytes, or a number with a binary unit.
func ParseSize(s string) (cluster.Bytes, error) {
	shift := uint(0)
	num := s
	for i, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if n, ok := strings.CutSuffix(s, u); ok {
			num, shift = n, uint(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return 0, fmt.Errorf("%q is no size; want %s", s, sizes)
	}
	return cluster.Bytes(n << shift), nil
}

func parseCount(s string, lo, hi int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < lo || n > hi {
		return 0, fmt.Errorf("%q is not allowed; want a whole number from %d to %d", s, lo, hi)
	}
	return n, nil
}

func parseYesNo(s string) (bool, error) {
	if s != "yes" && s != "no" {
		return false, fmt.Errorf("%q is not allowed; want yes or no", s)
	}
	return s == "yes", nil
}

// UsageError is a malformed or unknown key or value: exit code 64.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// UnsafeError is a set of values that would break the safety argument: exit code 4.
type UnsafeError struct{ Err error }

func (e *UnsafeError) Error() string { return e.Err.Error() }
func (e *UnsafeError) Unwrap() error { return e.Err }

// Warning is something accepted that does not do what one may expect.
type Warning string

var errEmpty = errors.New("is empty")
