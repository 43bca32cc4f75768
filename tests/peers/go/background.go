package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
)

const (
	readTimeoutMillis = 1000 // What Numaflow's data plane asks with.
	readsPerSecond    = 20   // When a rate is given: few messages each rather than few requests.
	isReadyPeriod     = 50 * time.Millisecond
	maxErrors         = 8 // The most errors that a report spells out.
)

// report is the answer to "background off".
type report struct {
	Event    string   `json:"event"`
	Messages uint64   `json:"messages"`
	Bytes    uint64   `json:"bytes"`
	Acked    uint64   `json:"acked"`
	IsReady  uint64   `json:"is_ready"`
	Errors   []string `json:"errors"`
	Intact   bool     `json:"intact"`
}

func (r *report) fail(err error) {
	if len(r.Errors) < maxErrors {
		r.Errors = append(r.Errors, err.Error())
	}
}

// background reads and acknowledges, and asks IsReady beside it.
type background struct {
	conn           *grpc.ClientConn
	verifier       *verifier
	records        uint64        // For each read request.
	period         time.Duration // Between two of them; 0 is as fast as possible.
	stop           chan struct{}
	started        chan struct{} // Closed when the first batch has been read.
	reader, prober chan report
}

// startBackground returns when the first batch has been read.
func startBackground(conn *grpc.ClientConn, v *verifier, batch, rate uint64) (*background, error) {
	b := &background{
		conn: conn, verifier: v, records: batch, stop: make(chan struct{}), started: make(chan struct{}),
		reader: make(chan report, 1), prober: make(chan report, 1),
	}
	if rate > 0 {
		if records := rate / readsPerSecond; records < batch {
			b.records = records
		}
		if b.records == 0 {
			b.records = 1
		}
		b.period = time.Duration(float64(b.records) / float64(rate) * float64(time.Second))
	}
	go b.read()
	select {
	case <-b.started:
	case result := <-b.reader:
		return nil, fmt.Errorf("reading did not start: %v", result.Errors)
	}
	go b.probe()
	return b, nil
}

func (b *background) finish() report {
	close(b.stop)
	result, probed := <-b.reader, <-b.prober
	result.IsReady = probed.IsReady
	for _, text := range probed.Errors {
		result.fail(errors.New(text))
	}
	return result
}

func (b *background) stopped() bool {
	select {
	case <-b.stop:
		return true
	default:
		return false
	}
}

func (b *background) probe() {
	var result report
	ticks := time.NewTicker(isReadyPeriod)
	defer ticks.Stop()
	for {
		select {
		case <-b.stop:
			b.prober <- result
			return
		case <-ticks.C:
		}
		switch value, err := callOnce(b.conn, "IsReady"); {
		case err != nil:
			result.fail(fmt.Errorf("IsReady: %s", codeName(err)))
		case value != "true":
			result.fail(errors.New("IsReady: not ready"))
		default:
			result.IsReady++
		}
	}
}

func (b *background) read() {
	result := report{Event: "background", Errors: []string{}, Intact: true}
	if err := b.readBatches(&result); err != nil {
		result.fail(err)
	}
	b.reader <- result
}

// readBatches reads and acknowledges in turn, as Numaflow's data plane does.
func (b *background) readBatches(result *report) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reads, err := b.open(ctx, "ReadFn", func(stream grpc.ClientStream) (bool, error) {
		var first readResponse
		err := stream.RecvMsg(&first)
		return first.handshake, err
	})
	if err != nil {
		return err
	}
	acks, err := b.open(ctx, "AckFn", func(stream grpc.ClientStream) (bool, error) {
		var first ackResponse
		err := stream.RecvMsg(&first)
		return first.handshake, err
	})
	if err != nil {
		return err
	}

	next := time.Now()
	for first := true; !b.stopped(); first = false {
		offsets, err := b.readBatch(reads, result)
		if err != nil {
			return fmt.Errorf("ReadFn: %w", err)
		}
		if len(offsets) > 0 {
			if err := ackBatch(acks, offsets); err != nil {
				return fmt.Errorf("AckFn: %w", err)
			}
			result.Acked += uint64(len(offsets))
		}
		if first {
			close(b.started)
		}
		if b.period > 0 {
			// Late requests are not made up for: the rate is an upper limit.
			next = next.Add(b.period)
			if now := time.Now(); next.Before(now) {
				next = now
			}
			select {
			case <-b.stop:
			case <-time.After(time.Until(next)):
			}
		}
	}
	return closeStreams(reads, acks)
}

// open starts a stream and shakes hands.
func (b *background) open(
	ctx context.Context, method string, receive func(grpc.ClientStream) (bool, error),
) (grpc.ClientStream, error) {
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := b.conn.NewStream(ctx, desc, "/source.v1.Source/"+method)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	if err := stream.SendMsg(sot{}); err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	switch ok, err := receive(stream); {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", method, err)
	case !ok:
		return nil, fmt.Errorf("%s: no handshake", method)
	}
	return stream, nil
}

// readBatch reads one batch; it returns the encoded offsets of the messages.
func (b *background) readBatch(reads grpc.ClientStream, result *report) ([][]byte, error) {
	if err := reads.SendMsg(readRequest{b.records, readTimeoutMillis}); err != nil {
		return nil, err
	}
	var offsets [][]byte
	for {
		var message readResponse
		if err := reads.RecvMsg(&message); err != nil {
			return nil, err
		}
		if message.end {
			return offsets, nil
		}
		offset, err := offsetBytes(message.offset)
		if err != nil {
			return nil, err
		}
		result.Messages++
		result.Bytes += uint64(len(message.payload))
		if err := b.verifier.check(message.payload, offset); err != nil {
			result.Intact = false
			result.fail(err)
		}
		offsets = append(offsets, message.offset)
	}
}

func ackBatch(acks grpc.ClientStream, offsets [][]byte) error {
	if err := acks.SendMsg(ackRequest{offsets}); err != nil {
		return err
	}
	var done ackResponse
	if err := acks.RecvMsg(&done); err != nil {
		return err
	}
	if !done.result {
		return errors.New("no result")
	}
	return nil
}

// closeStreams ends the streams in good order.
func closeStreams(streams ...grpc.ClientStream) error {
	for _, stream := range streams {
		if err := stream.CloseSend(); err != nil {
			return err
		}
	}
	for _, stream := range streams {
		switch err := stream.RecvMsg(new(readResponse)); {
		case err == nil:
			return errors.New("a message after the end")
		case err != io.EOF:
			return err
		}
	}
	return nil
}
