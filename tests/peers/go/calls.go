package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// codeNames are the statuses as the gRPC specification spells them; grpc-go has names of its own.
var codeNames = map[codes.Code]string{
	codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN",
	codes.InvalidArgument: "INVALID_ARGUMENT", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
	codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}

func codeName(err error) string { return codeNames[status.Code(err)] }

// methods are the unary methods, with their responses.
var methods = map[string]func() answer{
	"PendingFn":    func() answer { return new(pendingResponse) },
	"IsReady":      func() answer { return new(readyResponse) },
	"PartitionsFn": func() answer { return new(partitionsResponse) },
}

// outcomes counts how calls ended.
type outcomes struct {
	OK     uint64            `json:"ok"`
	Errors map[string]uint64 `json:"errors"`
	Values map[string]uint64 `json:"values"`
}

func newOutcomes() outcomes {
	return outcomes{Errors: map[string]uint64{}, Values: map[string]uint64{}}
}

func (o *outcomes) add(value string, err error) {
	if err != nil {
		o.Errors[codeName(err)]++
		return
	}
	o.OK++
	o.Values[value]++
}

func (o *outcomes) merge(other outcomes) {
	o.OK += other.OK
	for key, count := range other.Errors {
		o.Errors[key] += count
	}
	for key, count := range other.Values {
		o.Values[key] += count
	}
}

// callOnce makes one unary call of a method of the service, or of any path. It has no deadline, like the calls of Numaflow's data plane.
func callOnce(conn *grpc.ClientConn, method string) (string, error) {
	var reply answer = empty{}
	path := method
	if make := methods[method]; make != nil {
		reply, path = make(), "/source.v1.Source/"+method
	}
	err := conn.Invoke(context.Background(), path, empty{}, reply)
	return reply.value(), err
}

// together runs a function concurrency times at once, and returns what all of them add up to.
func together(concurrency int, each func(part *outcomes)) outcomes {
	var group sync.WaitGroup
	parts := make([]outcomes, concurrency)
	for i := range parts {
		parts[i] = newOutcomes()
		group.Add(1)
		go func(part *outcomes) {
			defer group.Done()
			each(part)
		}(&parts[i])
	}
	group.Wait()
	all := newOutcomes()
	for _, part := range parts {
		all.merge(part)
	}
	return all
}

// callMany makes count calls, concurrency of them in flight.
func callMany(conn *grpc.ClientConn, method string, count uint64, concurrency int) (outcomes, time.Duration) {
	start := time.Now()
	var taken uint64
	all := together(concurrency, func(part *outcomes) {
		for atomic.AddUint64(&taken, 1) <= count {
			part.add(callOnce(conn, method))
		}
	})
	return all, time.Since(start)
}

// fan makes count calls on each of the connections, one after another there, on concurrency of them at once.
func fan(conns []*grpc.ClientConn, method string, count uint64, concurrency int) (outcomes, time.Duration) {
	start := time.Now()
	work := make(chan *grpc.ClientConn, len(conns))
	for _, conn := range conns {
		work <- conn
	}
	close(work)
	all := together(concurrency, func(part *outcomes) {
		for conn := range work {
			for i := uint64(0); i < count; i++ {
				part.add(callOnce(conn, method))
			}
		}
	})
	return all, time.Since(start)
}

// ticker calls PendingFn at an interval.
type ticker struct {
	stop chan struct{}
	done chan outcomes
}

func startTicker(conn *grpc.ClientConn, period time.Duration) *ticker {
	t := &ticker{make(chan struct{}), make(chan outcomes)}
	go func() {
		ticks := time.NewTicker(period)
		defer ticks.Stop()
		result := newOutcomes()
		for {
			select {
			case <-t.stop:
				t.done <- result
				return
			case <-ticks.C:
				result.add(callOnce(conn, "PendingFn"))
			}
		}
	}()
	return t
}

func (t *ticker) finish() outcomes {
	close(t.stop)
	return <-t.done
}
