package etcd

import (
	"reflect"
	"strings"
	"sync"
)

// fieldNames remembers fieldsOf by type; it only ever holds the few types of records.
var fieldNames sync.Map

// fieldsOf returns the JSON names of a record's fields: those that an empty
// value may leave out, and which must then not be taken over from the old value.
func fieldsOf(record any) map[string]bool {
	t := reflect.TypeOf(record)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if known, ok := fieldNames.Load(t); ok {
		return known.(map[string]bool)
	}
	names := map[string]bool{}
	if t.Kind() != reflect.Struct {
		return names
	}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" {
			name = t.Field(i).Name
		}
		names[name] = true
	}
	fieldNames.Store(t, names)
	return names
}

// onlyKnown tells whether a JSON object has no keys but these. It errs towards
// false: a key with an escape in it counts as unknown, and what is no object too.
func onlyKnown(object []byte, known map[string]bool) bool {
	depth, key := 0, false // key: a string that begins here is one of the object's own keys
	for i := 0; i < len(object); i++ {
		switch object[i] {
		case '{', '[':
			depth++
			key = depth == 1 && object[i] == '{'
		case '}', ']':
			depth--
		case ',':
			key = depth == 1
		case '"':
			end := i + 1
			for end < len(object) && object[end] != '"' {
				if object[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(object) || key && !known[string(object[i+1:end])] {
				return false
			}
			i, key = end, false
		}
	}
	return depth == 0 && len(object) > 0 && object[0] == '{'
}
