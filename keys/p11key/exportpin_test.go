package p11key

// ReadPIN is readPIN.
var ReadPIN = readPIN
