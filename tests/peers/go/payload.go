package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The parts of a payload: see tests/src/payload.rs, where the format is defined.
const (
	sequenceLen = 8
	sumLen      = 4
	minPayload  = sequenceLen + 2*sumLen
)

// chain makes the messages, one after the other.
type chain struct {
	messageBytes int
	next         uint64
	lastSum      uint32
}

// message returns the next payload and its offset.
func (c *chain) message() (payload, offset []byte) {
	length := c.messageBytes
	if length < minPayload {
		length = minPayload
	}
	payload = make([]byte, length)
	binary.BigEndian.PutUint64(payload, c.next)
	binary.BigEndian.PutUint32(payload[sequenceLen:], c.lastSum)
	body, tail := payload[:length-sumLen], payload[length-sumLen:]
	derive(c.next, body[sequenceLen+sumLen:])
	c.lastSum = crc32.ChecksumIEEE(body)
	binary.BigEndian.PutUint32(tail, c.lastSum)
	c.next++
	return payload, append(append(offset, payload[:sequenceLen]...), tail...)
}

// derive fills out with a stream that depends on the sequence alone (SplitMix64).
func derive(sequence uint64, out []byte) {
	var word [8]byte
	for state := sequence; len(out) > 0; {
		state += 0x9e3779b97f4a7c15
		mixed := state
		mixed = (mixed ^ mixed>>30) * 0xbf58476d1ce4e5b9
		mixed = (mixed ^ mixed>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(word[:], mixed^mixed>>31)
		out = out[copy(out, word[:]):]
	}
}

// verifier checks that each message is the one that had to come next.
type verifier struct {
	joined   bool
	sequence uint64 // The last message's.
	sum      uint32
}

// check returns what is wrong with a message, or nil. After a broken message the chain goes on from there.
func (v *verifier) check(payload, offset []byte) error {
	if len(payload) < minPayload {
		return fmt.Errorf("a payload of %d bytes is too short", len(payload))
	}
	body, tail := payload[:len(payload)-sumLen], payload[len(payload)-sumLen:]
	sequence := binary.BigEndian.Uint64(body)
	follows := binary.BigEndian.Uint32(body[sequenceLen:])
	sum := binary.BigEndian.Uint32(tail)
	before := *v
	*v = verifier{true, sequence, sum}

	if expected := crc32.ChecksumIEEE(body); sum != expected {
		return fmt.Errorf("message %d: sum %08x, expected %08x", sequence, sum, expected)
	}
	if before.joined && sequence != before.sequence+1 {
		return fmt.Errorf("message %d came, expected %d", sequence, before.sequence+1)
	}
	// The very first message of all follows nothing.
	if (before.joined || sequence == 0) && follows != before.sum {
		return fmt.Errorf("message %d: follows %08x, expected %08x", sequence, follows, before.sum)
	}
	if len(offset) != sequenceLen+sumLen || !bytes.Equal(offset[:sequenceLen], body[:sequenceLen]) ||
		!bytes.Equal(offset[sequenceLen:], tail) {
		return fmt.Errorf("message %d: its offset is another message's", sequence)
	}
	return nil
}
