//go:build !failpoint

package main

// failpoint is for builds that tests make with the tag of that name.
func failpoint() func(string) { return nil }
