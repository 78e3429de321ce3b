package front

// GrowStack is for a goroutine that handles a request and is not of this package's: see growStack.
func GrowStack() { growStack(0) }

// growStack gives the goroutine a stack of 32 KB or more, which nearly every handler needs. Called while few frames are
// on the stack it costs one copy of these; left to itself the runtime doubles the stack several times in the depth of
// the handler, and walks and copies all its frames each time. The collector takes back what is not used any more.
//
//go:noinline
func growStack(i int) byte {
	var room [17 << 10]byte
	return room[i]
}
