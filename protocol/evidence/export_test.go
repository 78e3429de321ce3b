package evidence

// ParseExact also tells whether encoding the bundle again must give the same bytes.
var ParseExact = parseCSR
