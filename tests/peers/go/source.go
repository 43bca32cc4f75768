package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	infoEnd   = "U+005C__END__" // What SDKs write after the JSON object in the server-info file.
	notKnown  = -1              // What PendingFn answers then.
	stopLimit = 3 * time.Second // How long open connections may take to end: a stopped client never will.
)

// stats are the source's counters: the answer to "stats".
type stats struct {
	Event         string `json:"event"`
	Pending       uint64 `json:"pending"`
	Read          uint64 `json:"read"`
	Ack           uint64 `json:"ack"`
	Nack          uint64 `json:"nack"`
	Partitions    uint64 `json:"partitions"`
	Messages      uint64 `json:"messages"`
	Bytes         uint64 `json:"bytes"`
	Acked         uint64 `json:"acked"`
	AckMismatches uint64 `json:"ack_mismatches"`
	Abandoned     uint64 `json:"abandoned"`
}

// generator is the source's user code: it makes messages, checks acknowledgements, counts.
type generator struct {
	pending   int64
	partition uint64

	mutex   sync.Mutex
	stats   stats
	chain   chain
	unacked [][]byte // Offsets handed out and not acknowledged yet, in order.
}

// now returns the counters so far.
func (g *generator) now() stats {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return g.stats
}

// count changes the counters.
func (g *generator) count(change func(*stats)) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	change(&g.stats)
}

// next makes one message.
func (g *generator) next() encoded {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	payload, offset := g.chain.message()
	g.unacked = append(g.unacked, offset)
	g.stats.Messages++
	g.stats.Bytes += uint64(len(payload))
	now := time.Now()
	return encodeMessage(payload, offset, uint64(now.Unix()), uint64(now.Nanosecond()))
}

func (g *generator) acknowledge(offsets [][]byte) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.stats.Ack++
	for _, offset := range offsets {
		position := 0
		for position < len(g.unacked) && !bytes.Equal(g.unacked[position], offset) {
			position++
		}
		if position == len(g.unacked) {
			g.stats.AckMismatches++
			continue
		}
		g.unacked = g.unacked[position+1:]
		g.stats.Acked++
		g.stats.Abandoned += uint64(position)
	}
}

var errNoHandshake = status.Error(codes.InvalidArgument, "handshake not present")

// ended is what a stream ends with when receiving from it failed: well, at the end of the client's half.
func ended(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// read is ReadFn: it ends when the client's half does, or with the error that receiving or sending ended with.
func (g *generator) read(stream grpc.ServerStream) error {
	var first readIncoming
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	if !first.handshake {
		return errNoHandshake
	}
	if err := stream.SendMsg(readHandshake); err != nil {
		return err
	}
	for {
		var request readIncoming
		if err := stream.RecvMsg(&request); err != nil {
			return ended(err)
		}
		g.count(func(s *stats) { s.Read++ })
		for sent := uint64(0); sent < request.records; sent++ {
			if err := stream.SendMsg(g.next()); err != nil {
				return err
			}
		}
		if err := stream.SendMsg(endOfBatch); err != nil {
			return err
		}
	}
}

// ack is AckFn.
func (g *generator) ack(stream grpc.ServerStream) error {
	var first ackIncoming
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	if !first.handshake {
		return errNoHandshake
	}
	if err := stream.SendMsg(ackHandshake); err != nil {
		return err
	}
	for {
		var request ackIncoming
		if err := stream.RecvMsg(&request); err != nil {
			return ended(err)
		}
		g.acknowledge(request.offsets)
		if err := stream.SendMsg(acknowledged); err != nil {
			return err
		}
	}
}

// service describes source.v1.Source, as generated code would.
func (g *generator) service() *grpc.ServiceDesc {
	unary := func(name string, answer func() encoded) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(
			_ interface{}, _ context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor,
		) (interface{}, error) {
			if err := decode(empty{}); err != nil {
				return nil, err
			}
			return answer(), nil
		}}
	}
	stream := func(name string, answer func(grpc.ServerStream) error) grpc.StreamDesc {
		handler := func(_ interface{}, stream grpc.ServerStream) error { return answer(stream) }
		return grpc.StreamDesc{StreamName: name, Handler: handler, ServerStreams: true, ClientStreams: true}
	}
	return &grpc.ServiceDesc{
		ServiceName: "source.v1.Source",
		HandlerType: (*interface{})(nil),
		Methods: []grpc.MethodDesc{
			unary("IsReady", func() encoded { return ready }),
			unary("PendingFn", func() encoded {
				g.count(func(s *stats) { s.Pending++ })
				return encodePending(g.pending)
			}),
			unary("PartitionsFn", func() encoded {
				g.count(func(s *stats) { s.Partitions++ })
				return encodePartitions(g.partition)
			}),
		},
		Streams: []grpc.StreamDesc{stream("ReadFn", g.read), stream("AckFn", g.ack)},
	}
}

// runSource serves until it is told to stop.
func runSource() error {
	flags := flag.NewFlagSet("source", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // What is wrong is reported like everything else.
	socket := flags.String("socket", "", "the Unix socket to listen on")
	info := flags.String("server-info", "", "the server-info file (default: SOCKET.server-info)")
	messageBytes := flags.Int("message-bytes", 1024, "bytes of a payload")
	pending := flags.Int64("pending-value", notKnown, "what PendingFn answers")
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	if *socket == "" || flags.NArg() > 0 {
		return errors.New("usage: go-peer source --socket PATH [--server-info PATH] [--message-bytes N] [--pending-value N]")
	}
	if *info == "" {
		*info = *socket + ".server-info"
	}
	if *pending < 0 {
		*pending = notKnown
	}
	partition, _ := strconv.ParseUint(os.Getenv("NUMAFLOW_REPLICA"), 10, 31) // 0 without, as in the SDKs.

	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	for _, path := range []string{*socket, *info} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		return err
	}
	g := &generator{pending: *pending, partition: partition, chain: chain{messageBytes: *messageBytes}}
	g.stats.Event = "stats"
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	server.RegisterService(g.service(), nil)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	about := fmt.Sprintf(`{"protocol":"uds","language":"go","version":"%s"}`, grpc.Version)
	if err := os.WriteFile(*info, []byte(about+infoEnd), 0o666); err != nil {
		return err
	}
	defer os.Remove(*info)
	emit(map[string]interface{}{
		"event": "listening", "socket": *socket, "tcp": nil, "pid": os.Getpid(), "sdk": "grpc-go " + grpc.Version,
	})
	if err := answerCommands(g, terminate, failed); err != nil {
		return err
	}
	stop(server)
	emit(g.now())
	return nil
}

// answerCommands returns when it is time to stop.
func answerCommands(g *generator, terminate <-chan os.Signal, failed <-chan error) error {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			lines <- strings.TrimSpace(scanner.Text())
		}
	}()
	for {
		select {
		case <-terminate:
			return nil
		case err := <-failed:
			return err
		case line, open := <-lines:
			switch {
			case !open || line == "quit":
				return nil
			case line != "stats":
				return fmt.Errorf("unknown command: %q", line)
			}
			emit(g.now())
		}
	}
}

// stop ends the server; connections that outlive the limit are cut.
func stop(server *grpc.Server) {
	cut := time.AfterFunc(stopLimit, server.Stop)
	defer cut.Stop()
	server.GracefulStop()
}
