package etcd

import (
	"reflect"
	"strings"
)

// fieldsOf returns the JSON names of a record's fields: those that an empty
// value may leave out, and which must then not be taken over from the old value.
func fieldsOf(record any) map[string]bool {
	t := reflect.TypeOf(record)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
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
	return names
}
