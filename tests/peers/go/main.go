// Peers on grpc-go: a client that behaves like Numaflow's Go data plane, with one connection for everything, and a
// source.
//
// Commands on standard input, one JSON line each on standard output: see ../README.md.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
)

const (
	maxMessage = 64 << 20              // As in Numaflow's data plane.
	readyLimit = 30 * time.Second      // How long a source may take to answer IsReady, on an ordinary machine.
	slow       = "PENDGUARD_TEST_SLOW" // What limits are multiplied by on this one.
	retry      = 100 * time.Millisecond
)

func main() {
	run := runClient
	if len(os.Args) > 1 && os.Args[1] == "source" {
		run = runSource
	}
	if err := run(); err != nil {
		emit(map[string]string{"event": "error", "message": err.Error()})
		os.Exit(1)
	}
}

func emit(line interface{}) {
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		fmt.Fprintln(os.Stderr, "go-peer:", err)
		os.Exit(1)
	}
}

func runClient() error {
	socket := flag.String("socket", "", "the source's Unix socket")
	tcp := flag.String("tcp", "", "the source's TCP address, HOST:PORT")
	concurrency := flag.Int("concurrency", 16, "unary calls in flight")
	batch := flag.Uint64("batch", 500, "records of a read request")
	flag.Parse()
	if (*socket == "") == (*tcp == "") || *concurrency < 1 || *batch < 1 || flag.NArg() > 0 {
		return errors.New("usage: go-peer (--socket PATH | --tcp HOST:PORT) [--concurrency N] [--batch N]")
	}
	target := *tcp
	if *socket != "" {
		target = "unix:" + *socket
	}
	dial := func() (*grpc.ClientConn, error) {
		return grpc.Dial(target, grpc.WithInsecure(), grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	attempts, err := waitReady(conn)
	if err != nil {
		return err
	}
	emit(map[string]interface{}{
		"event": "ready", "client": "grpc-go", "version": grpc.Version, "pid": os.Getpid(), "attempts": attempts,
	})

	s := session{conn: conn, dial: dial, concurrency: *concurrency, batch: *batch}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer, err := s.command(lines.Text())
		if err != nil {
			return err
		}
		if answer == nil {
			break
		}
		emit(answer)
	}
	return lines.Err()
}

// scaled is a limit on this machine.
func scaled(limit time.Duration) (time.Duration, error) {
	value, set := os.LookupEnv(slow)
	if !set {
		return limit, nil
	}
	factor, err := strconv.ParseUint(value, 10, 16)
	if err != nil || factor < 1 {
		return 0, fmt.Errorf("%s=%q is not a number of 1 or more", slow, value)
	}
	return limit * time.Duration(factor), nil
}

// waitReady asks IsReady until the answer is OK, as the data plane does when it starts.
func waitReady(conn *grpc.ClientConn) (attempts int, err error) {
	limit, err := scaled(readyLimit)
	if err != nil {
		return 0, err
	}
	for start := time.Now(); time.Since(start) < limit; time.Sleep(retry) {
		var value string
		attempts++
		if value, err = callOnce(conn, "IsReady"); err == nil && value == "true" {
			return attempts, nil
		}
	}
	return attempts, fmt.Errorf("the source was not ready in %v: %v", limit, err)
}

// session is one client and what it does in the background.
type session struct {
	conn        *grpc.ClientConn
	dial        func() (*grpc.ClientConn, error)
	others      []*grpc.ClientConn // Opened by command.
	concurrency int
	batch       uint64
	background  *background
	ticker      *ticker
	verifier    verifier // Where the last background stopped.
}

// called is the answer to a command that makes calls.
func called(method string, result outcomes, elapsed time.Duration) interface{} {
	return struct {
		Event  string `json:"event"`
		Method string `json:"method"`
		outcomes
		Seconds float64 `json:"seconds"`
	}{"called", method, result, elapsed.Seconds()}
}

// command does what a line says; nil is the answer to "quit".
func (s *session) command(line string) (interface{}, error) {
	words := strings.Fields(line)
	unknown := fmt.Errorf("unknown command: %q", line)
	var numbers []uint64
	// A command is its words, with # for a number and METHOD for a method.
	pattern, method := make([]string, len(words)), ""
	for i, word := range words {
		if number, err := strconv.ParseUint(word, 10, 63); err == nil {
			numbers = append(numbers, number)
			word = "#"
		} else if methods[word] != nil || strings.HasPrefix(word, "/") {
			method, word = word, "METHOD"
		}
		pattern[i] = word
	}
	switch strings.Join(pattern, " ") {
	case "call METHOD #":
		result, elapsed := callMany(s.conn, method, numbers[0], s.concurrency)
		return called(method, result, elapsed), nil
	case "open #":
		for i := uint64(0); i < numbers[0]; i++ {
			other, err := s.dial()
			if err != nil {
				return nil, err
			}
			if _, err := waitReady(other); err != nil {
				return nil, err
			}
			s.others = append(s.others, other)
		}
		return called("IsReady", newOutcomes(), 0), nil
	case "fan METHOD #":
		result, elapsed := fan(s.others, method, numbers[0], s.concurrency)
		return called(method, result, elapsed), nil
	case "background on #":
		if s.background != nil {
			return nil, errors.New("the background is on already")
		}
		var err error
		s.background, err = startBackground(s.conn, &s.verifier, s.batch, numbers[0])
		return map[string]string{"event": "reading"}, err
	case "background off":
		if s.background == nil {
			return nil, errors.New("the background is off")
		}
		result := s.background.finish()
		s.background = nil
		return result, nil
	case "every #":
		if s.ticker != nil {
			return nil, errors.New("an interval is set already")
		}
		millis := math.Max(1, float64(numbers[0]))
		s.ticker = startTicker(s.conn, time.Duration(millis*float64(time.Millisecond)))
		return map[string]string{"event": "ticking"}, nil
	case "every off":
		if s.ticker == nil {
			return nil, errors.New("no interval is set")
		}
		result := s.ticker.finish()
		s.ticker = nil
		count := result.OK
		for _, errors := range result.Errors {
			count += errors
		}
		return struct {
			Event string `json:"event"`
			Count uint64 `json:"count"`
			outcomes
		}{"every", count, result}, nil
	case "quit":
		return nil, nil
	}
	return nil, unknown
}
