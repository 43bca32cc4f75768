'use strict'

// The format of a payload is defined in tests/src/payload.rs.

const zlib = require('node:zlib')

const SUM = 4
const SEQUENCE = 8

/** CRC-32 (IEEE). Node has one since 22.2 and 20.15; Debian 12 ships an older Node. */
const crc32 = zlib.crc32 ?? tableCrc32()

function tableCrc32() {
  const table = Uint32Array.from({ length: 256 }, (_, byte) => {
    let value = byte
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1
    return value
  })
  return (data) => {
    let sum = 0xffffffff
    for (const byte of data) sum = (sum >>> 8) ^ table[(sum ^ byte) & 0xff]
    return (sum ^ 0xffffffff) >>> 0
  }
}

const hex = (sum) => sum.toString(16).padStart(8, '0')

/** Checks that each message is the one that had to come next. */
class Verifier {
  #last = null

  /** What is wrong with a message, or null. After a broken one the chain goes on from there. */
  check(payload, offset) {
    if (payload.length < SEQUENCE + 2 * SUM) return `a payload of ${payload.length} bytes is too short`
    const body = payload.subarray(0, -SUM)
    const sequence = body.readBigUInt64BE(0)
    const follows = body.readUInt32BE(SEQUENCE)
    const sum = payload.readUInt32BE(body.length)
    const before = this.#last
    this.#last = { sequence, sum }

    const expected = crc32(body)
    if (sum !== expected) return `message ${sequence}: sum ${hex(sum)}, expected ${hex(expected)}`
    if (before && sequence !== before.sequence + 1n) {
      return `message ${sequence} came, expected ${before.sequence + 1n}`
    }
    // The very first message of all follows nothing.
    const link = before ?? (sequence === 0n ? { sum: 0 } : null)
    if (link && follows !== link.sum) return `message ${sequence}: follows ${hex(follows)}, expected ${hex(link.sum)}`
    const own = Buffer.concat([payload.subarray(0, SEQUENCE), payload.subarray(-SUM)])
    return own.equals(offset) ? null : `message ${sequence}: its offset is another message's`
  }
}

module.exports = { SEQUENCE, SUM, Verifier, crc32, tableCrc32 }
