// Package query is a subset of Azure IoT Hub's query language: a query's text becomes a tree (Parse), which
// can be printed (Query.String), asked about one device at a time (Query.Match, Query.Row) and counted (Groups). It
// knows no store: whoever runs a query feeds it the devices.
//
//	SELECT * | item {, item} FROM devices | devices.modules [WHERE condition] [GROUP BY path {, path}]
//	item      = path [AS name] | COUNT() [AS name]
//	condition = OR, AND, NOT and parentheses over comparisons (= != <> < > <= >=), [NOT] IN [literal {, literal}] and
//	            IS_DEFINED(path), STARTSWITH(path, text), ENDSWITH(path, text), CONTAINS(path, text)
//	path      = name {.name | ['name']}, beginning with one of Roots
//	literal   = number | 'text' | "text" | true | false | null
//
// What Azure has beyond that (TOP, ORDER BY, JOIN, other functions, arithmetic, ...) is refused by name and position,
// rather than taken for something else.
//
// A property that a device does not have is undefined. A comparison with it is undefined too, and so is what NOT,
// AND and OR make of it unless the other side decides; only what is true matches. Against the literal null an
// undefined property counts as null: null deletes a twin's property, so none is ever stored. Values of different
// types are unequal, and neither is less than the other. Texts compare by their bytes.
package query
