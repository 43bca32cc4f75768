'use strict'

const { Stop, callOnce, codeName } = require('./calls')

const READ_TIMEOUT_MS = 1000 // What Numaflow's data plane asks with.
const READS_PER_SECOND = 20 // When a rate is given: few messages each rather than few requests.
const IS_READY_MILLIS = 50
const MAX_ERRORS = 8 // The most errors that a report spells out.

/** One bidirectional stream, after its handshake. */
class Stream {
  #call
  #messages
  #name

  static async open(client, name) {
    const stream = new Stream()
    stream.#name = name
    stream.#call = client[name]()
    stream.#messages = stream.#call[Symbol.asyncIterator]()
    const first = await stream.ask({ handshake: { sot: true } })
    if (!first.handshake?.sot) throw new Error(`${name}: no handshake`)
    return stream
  }

  /** Sends a request, and returns the first message that comes back. */
  ask(request) {
    this.#call.write(request)
    return this.next()
  }

  async next() {
    const { done, value } = await this.#take()
    if (done) throw new Error(`${this.#name} ended`)
    return value
  }

  async close() {
    this.#call.end()
    if (!(await this.#take()).done) throw new Error(`${this.#name}: a message after the end`)
  }

  async #take() {
    try {
      return await this.#messages.next()
    } catch (error) {
      throw new Error(`${this.#name}: ${codeName(error)}`)
    }
  }
}

/** Reads and acknowledges, and asks IsReady beside it. */
class Background {
  #client
  #verifier
  #records
  #millis = 0
  #stop = new Stop()
  #report = { event: 'background', messages: 0, bytes: 0, acked: 0, is_ready: 0, errors: [], intact: true }
  #reader
  #prober

  constructor(client, verifier, batch, rate) {
    this.#client = client
    this.#verifier = verifier
    this.#records = batch
    if (rate > 0) {
      this.#records = Math.max(1, Math.min(batch, Math.floor(rate / READS_PER_SECOND)))
      this.#millis = (this.#records / rate) * 1000
    }
  }

  /** Returns when the first batch has been read. */
  async start() {
    let started
    const firstBatch = new Promise((resolve) => (started = resolve))
    this.#reader = this.#read(() => started(true)).catch((error) => this.#fail(error.message))
    const reading = await Promise.race([firstBatch, this.#reader.then(() => false)])
    if (!reading) throw new Error(`reading did not start: ${this.#report.errors.join('; ')}`)
    this.#prober = this.#probe()
  }

  /** Finishes the batch in hand and ends both streams. */
  async finish() {
    this.#stop.ask()
    await Promise.all([this.#reader, this.#prober])
    return this.#report
  }

  #fail(error) {
    if (this.#report.errors.length < MAX_ERRORS) this.#report.errors.push(error)
  }

  async #probe() {
    while (!(await this.#stop.within(IS_READY_MILLIS))) {
      try {
        if ((await callOnce(this.#client, 'IsReady')) === 'true') this.#report.is_ready += 1
        else this.#fail('IsReady: not ready')
      } catch (error) {
        this.#fail(`IsReady: ${codeName(error)}`)
      }
    }
  }

  /** Reads and acknowledges in turn, as Numaflow's data plane does. */
  async #read(started) {
    const reads = await Stream.open(this.#client, 'ReadFn')
    const acks = await Stream.open(this.#client, 'AckFn')
    let next = performance.now()
    while (!this.#stop.wanted) {
      const offsets = await this.#readBatch(reads)
      if (offsets.length > 0) {
        const answer = await acks.ask({ request: { offsets } })
        if (!answer.result) throw new Error('AckFn: no result')
        this.#report.acked += offsets.length
      }
      started()
      if (this.#millis > 0) {
        // Late requests are not made up for: the rate is an upper limit.
        next = Math.max(next + this.#millis, performance.now())
        await this.#stop.within(next - performance.now())
      }
    }
    await reads.close()
    await acks.close()
  }

  /** Reads one batch; the offsets of its messages. */
  async #readBatch(reads) {
    const offsets = []
    const request = { num_records: this.#records, timeout_in_ms: READ_TIMEOUT_MS }
    for (let message = await reads.ask({ request }); !message.status?.eot; message = await reads.next()) {
      const { payload, offset } = message.result
      this.#report.messages += 1
      this.#report.bytes += payload.length
      const broken = this.#verifier.check(payload, offset.offset)
      if (broken) {
        this.#report.intact = false
        this.#fail(broken)
      }
      offsets.push(offset)
    }
    return offsets
  }
}

module.exports = { Background }
