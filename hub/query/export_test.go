package query

// Unserved is what Azure's language has and is refused by name.
var Unserved = unserved
