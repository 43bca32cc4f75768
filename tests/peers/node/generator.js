'use strict'

const crypto = require('node:crypto')

const { SEQUENCE, SUM, crc32 } = require('./payload')

const NOT_KNOWN = -1 // What PendingFn answers then.

/** The source's user code: makes messages, checks acknowledgements, counts. */
class Generator {
  stats = {
    pending: 0,
    read: 0,
    ack: 0,
    nack: 0,
    partitions: 0,
    messages: 0,
    bytes: 0,
    acked: 0,
    ack_mismatches: 0,
    abandoned: 0,
  }
  #messageBytes
  #pending
  #made = 0n
  #lastSum = 0
  #unacked = [] // Offsets handed out and not acknowledged yet, in order.

  constructor(messageBytes, pending) {
    this.#messageBytes = Math.max(messageBytes, SEQUENCE + 2 * SUM)
    this.#pending = pending < 0 ? NOT_KNOWN : pending
  }

  /** The next message of the chain. */
  #next() {
    const payload = Buffer.alloc(this.#messageBytes)
    payload.writeBigUInt64BE(this.#made)
    payload.writeUInt32BE(this.#lastSum, SEQUENCE)
    const start = SEQUENCE + SUM
    const outputLength = payload.length - start - SUM
    const sequence = payload.subarray(0, SEQUENCE)
    // OpenSSL 3 makes no digest of no bytes.
    if (outputLength > 0) crypto.createHash('shake128', { outputLength }).update(sequence).digest().copy(payload, start)
    this.#lastSum = crc32(payload.subarray(0, -SUM))
    payload.writeUInt32BE(this.#lastSum, payload.length - SUM)
    this.#made += 1n
    return { payload, offset: Buffer.concat([sequence, payload.subarray(-SUM)]) }
  }

  read(count) {
    this.stats.read += 1
    return Array.from({ length: count }, () => {
      const message = this.#next()
      this.#unacked.push(message.offset)
      this.stats.messages += 1
      this.stats.bytes += message.payload.length
      return message
    })
  }

  acknowledge(offsets) {
    this.stats.ack += 1
    for (const { offset, partition_id } of offsets) {
      const position = partition_id === 0 ? this.#unacked.findIndex((known) => known.equals(offset)) : -1
      if (position < 0) {
        this.stats.ack_mismatches += 1
        continue
      }
      this.#unacked.splice(0, position + 1)
      this.stats.acked += 1
      this.stats.abandoned += position
    }
  }

  pending() {
    this.stats.pending += 1
    return this.#pending
  }

  partitions() {
    this.stats.partitions += 1
    return [Number(process.env.NUMAFLOW_REPLICA ?? 0)]
  }
}

module.exports = { Generator, NOT_KNOWN }
