package cms

var (
	WrapKey   = wrapKey
	UnwrapKey = unwrapKey
)
