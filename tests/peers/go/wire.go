package main

// The messages of source.v1, encoded by hand: seven small messages need less code than generated ones, and grpc-go
// only asks for bytes. Field numbers are those of tests/proto/source.proto.

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/encoding/protowire"
)

// outgoing is a message that this program sends.
type outgoing interface {
	marshal() []byte
}

// incoming is a message that this program receives.
type incoming interface {
	// field takes one field; number holds a varint's value, bytes the content of a length-delimited field.
	field(num protowire.Number, number uint64, bytes []byte) error
}

// codec replaces grpc-go's codec of the same name, so that the content type on the wire stays "application/grpc".
type codec struct{}

func init() { encoding.RegisterCodec(codec{}) }

func (codec) Name() string { return "proto" }

func (codec) Marshal(message interface{}) ([]byte, error) {
	if message, ok := message.(outgoing); ok {
		return message.marshal(), nil
	}
	return nil, fmt.Errorf("%T is not sent", message)
}

func (codec) Unmarshal(data []byte, message interface{}) error {
	if message, ok := message.(incoming); ok {
		return fields(data, message.field)
	}
	return fmt.Errorf("%T is not received", message)
}

// fields calls take for every field of an encoded message.
func fields(data []byte, take func(protowire.Number, uint64, []byte) error) error {
	for len(data) > 0 {
		num, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		var number uint64
		var bytes []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(data)
		default:
			n = protowire.ConsumeFieldValue(num, kind, data)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if err := take(num, number, bytes); err != nil {
			return err
		}
	}
	return nil
}

// embed appends a field that holds a message.
func embed(out []byte, num protowire.Number, message []byte) []byte {
	out = protowire.AppendTag(out, num, protowire.BytesType)
	return protowire.AppendBytes(out, message)
}

// appendNumber appends a field that holds a varint.
func appendNumber(out []byte, num protowire.Number, number uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(out, num, protowire.VarintType), number)
}

// empty is google.protobuf.Empty.
type empty struct{}

func (empty) marshal() []byte { return nil }

func (empty) field(protowire.Number, uint64, []byte) error { return nil }

// value says of an answer whose content isn't looked at that it came.
func (empty) value() string { return "answered" }

// sot is the first request of both streams: field 2, a handshake whose field 1 is true.
type sot struct{}

func (sot) marshal() []byte { return []byte{2<<3 | 2, 2, 1 << 3, 1} }

// readRequest is ReadRequest.Request.
type readRequest struct{ records, timeoutMillis uint64 }

func (r readRequest) marshal() []byte {
	return embed(nil, 1, appendNumber(appendNumber(nil, 1, r.records), 2, r.timeoutMillis))
}

// ackRequest is AckRequest.Request; its offsets are encoded messages, as they came.
type ackRequest struct{ offsets [][]byte }

func (r ackRequest) marshal() []byte {
	var inner []byte
	for _, offset := range r.offsets {
		inner = embed(inner, 1, offset)
	}
	return embed(nil, 1, inner)
}

// readResponse is ReadResponse.
type readResponse struct {
	handshake, end  bool
	payload, offset []byte // The offset is the encoded message.
}

func (r *readResponse) field(num protowire.Number, _ uint64, bytes []byte) error {
	switch num {
	case 1:
		return fields(bytes, func(num protowire.Number, _ uint64, bytes []byte) error {
			switch num {
			case 1:
				r.payload = bytes
			case 2:
				r.offset = bytes
			}
			return nil
		})
	case 2:
		return fields(bytes, func(num protowire.Number, number uint64, _ []byte) error {
			r.end = r.end || num == 1 && number != 0
			return nil
		})
	case 3:
		r.handshake = true
	}
	return nil
}

// offsetBytes is the field "offset" of an encoded Offset.
func offsetBytes(message []byte) (offset []byte, err error) {
	err = fields(message, func(num protowire.Number, _ uint64, bytes []byte) error {
		if num == 1 {
			offset = bytes
		}
		return nil
	})
	return offset, err
}

// ackResponse is AckResponse.
type ackResponse struct{ handshake, result bool }

func (r *ackResponse) field(num protowire.Number, _ uint64, _ []byte) error {
	r.result = r.result || num == 1
	r.handshake = r.handshake || num == 2
	return nil
}

// answer is a unary response that can say what it holds, in the words of the line protocol.
type answer interface {
	incoming
	value() string
}

// readyResponse is ReadyResponse.
type readyResponse struct{ ready bool }

func (r *readyResponse) field(num protowire.Number, number uint64, _ []byte) error {
	if num == 1 {
		r.ready = number != 0
	}
	return nil
}

func (r *readyResponse) value() string { return strconv.FormatBool(r.ready) }

// pendingResponse is PendingResponse.
type pendingResponse struct {
	present bool
	count   int64
}

func (r *pendingResponse) field(num protowire.Number, _ uint64, bytes []byte) error {
	if num != 1 {
		return nil
	}
	r.present = true
	return fields(bytes, func(num protowire.Number, number uint64, _ []byte) error {
		if num == 1 {
			r.count = int64(number)
		}
		return nil
	})
}

func (r *pendingResponse) value() string {
	if !r.present {
		return "absent"
	}
	return strconv.FormatInt(r.count, 10)
}

// partitionsResponse is PartitionsResponse.
type partitionsResponse struct {
	present    bool
	partitions []string
}

func (r *partitionsResponse) field(num protowire.Number, _ uint64, bytes []byte) error {
	if num != 1 {
		return nil
	}
	r.present = true
	return fields(bytes, func(num protowire.Number, number uint64, bytes []byte) error {
		switch {
		case num != 1:
		case bytes == nil:
			r.add(number)
		default: // Packed, as proto3 does by default.
			for len(bytes) > 0 {
				number, n := protowire.ConsumeVarint(bytes)
				if n < 0 {
					return protowire.ParseError(n)
				}
				r.add(number)
				bytes = bytes[n:]
			}
		}
		return nil
	})
}

func (r *partitionsResponse) add(number uint64) {
	r.partitions = append(r.partitions, strconv.FormatInt(int64(int32(number)), 10))
}

func (r *partitionsResponse) value() string {
	if !r.present {
		return "absent"
	}
	return strings.Join(r.partitions, ",")
}

// What follows is sent and received by a source.

// readIncoming is ReadRequest.
type readIncoming struct {
	handshake bool
	records   uint64
}

func (r *readIncoming) field(num protowire.Number, _ uint64, bytes []byte) error {
	switch num {
	case 1:
		return fields(bytes, func(num protowire.Number, number uint64, _ []byte) error {
			if num == 1 {
				r.records = number
			}
			return nil
		})
	case 2:
		r.handshake = true
	}
	return nil
}

// ackIncoming is AckRequest.
type ackIncoming struct {
	handshake bool
	offsets   [][]byte // The bytes in each; nil where the partition is not 0.
}

func (r *ackIncoming) field(num protowire.Number, _ uint64, bytes []byte) error {
	switch num {
	case 1:
		return fields(bytes, func(num protowire.Number, _ uint64, bytes []byte) error {
			if num != 1 {
				return nil
			}
			var offset []byte
			foreign := false
			err := fields(bytes, func(num protowire.Number, number uint64, bytes []byte) error {
				switch num {
				case 1:
					offset = bytes
				case 2:
					foreign = number != 0
				}
				return nil
			})
			if foreign {
				offset = nil
			}
			r.offsets = append(r.offsets, offset)
			return err
		})
	case 2:
		r.handshake = true
	}
	return nil
}

// encoded is a message that is ready to be sent.
type encoded []byte

func (e encoded) marshal() []byte { return e }

// The answers that are always the same, with their fields' numbers in the order of nesting.
var (
	readHandshake = encoded{3<<3 | 2, 2, 1 << 3, 1}
	ackHandshake  = encoded{2<<3 | 2, 2, 1 << 3, 1}
	endOfBatch    = encoded{2<<3 | 2, 2, 1 << 3, 1}
	acknowledged  = encoded{1<<3 | 2, 2, 1<<3 | 2, 0}
	ready         = encoded{1 << 3, 1}
)

// encodeMessage is a ReadResponse with a message of partition 0.
func encodeMessage(payload, offset []byte, seconds, nanos uint64) encoded {
	time := appendNumber(appendNumber(nil, 1, seconds), 2, nanos)
	result := embed(embed(embed(nil, 1, payload), 2, embed(nil, 1, offset)), 3, time)
	return embed(nil, 1, result)
}

// encodePending is PendingResponse.
func encodePending(count int64) encoded { return embed(nil, 1, appendNumber(nil, 1, uint64(count))) }

// encodePartitions is PartitionsResponse with one partition.
func encodePartitions(partition uint64) encoded {
	return embed(nil, 1, embed(nil, 1, protowire.AppendVarint(nil, partition)))
}
