package cluster

import (
	"fmt"
	"testing"
)

func TestMarksRememberTheNewestOnes(t *testing.T) {
	var m Marks
	if !m.Knows("") || m.Knows("a") {
		t.Error("without any mark only the empty one is known")
	}
	for i := range 100 {
		m = m.With(fmt.Sprint(i))
	}
	if len(m.Marks) != marksKept || m.Marks[0] != "99" || !m.Knows("99") || !m.Knows("68") || m.Knows("67") {
		t.Errorf("marks are %v", m.Marks)
	}
}
