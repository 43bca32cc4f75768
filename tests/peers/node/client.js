'use strict'

// A grpc-js client that behaves like Numaflow's data plane: one connection for everything.
// Commands on standard input, one JSON line each on standard output: see ../README.md.

const readline = require('node:readline')
const { parseArgs } = require('node:util')

const grpc = require('@grpc/grpc-js')
const { version } = require('@grpc/grpc-js/package.json')

const { Background } = require('./background')
const { Ticker, callMany, callOnce, codeName, isMethod } = require('./calls')
const { Verifier } = require('./payload')
const { OPTIONS, Source } = require('./service')

const SLOW = Number(process.env.PENDGUARD_TEST_SLOW ?? 1) // What limits are multiplied by on this machine.
const READY_LIMIT_MILLIS = 30_000 * SLOW // How long a source may take to answer IsReady.
const RETRY_MILLIS = 100

const emit = (line) => process.stdout.write(`${JSON.stringify(line)}\n`)

function connect({ socket, tcp }) {
  return new Source(socket ? `unix:${socket}` : tcp, grpc.credentials.createInsecure(), OPTIONS)
}

/** Asks IsReady until the answer is OK, as the data plane does when it starts; how many calls that took. */
async function waitReady(client) {
  const start = performance.now()
  for (let attempts = 1; ; attempts++) {
    let answer
    try {
      answer = await callOnce(client, 'IsReady')
      if (answer === 'true') return attempts
    } catch (error) {
      answer = `${codeName(error)}: ${error.details}`
    }
    if (performance.now() - start > READY_LIMIT_MILLIS) {
      throw new Error(`the source was not ready in ${READY_LIMIT_MILLIS} ms: ${answer}`)
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MILLIS))
  }
}

/** One client and what it does in the background. */
class Session {
  #client
  #concurrency
  #batch
  #background = null
  #ticker = null
  #verifier = new Verifier() // Where the last background stopped.

  constructor(client, concurrency, batch) {
    this.#client = client
    this.#concurrency = concurrency
    this.#batch = batch
  }

  /** Does what a line says; null is the answer to "quit". */
  async run(line) {
    const words = line.trim().split(/\s+/)
    const number = Number(words.find((word) => /^\d+$/.test(word)))
    // A command is its words, with # for a number and METHOD for a method.
    const shape = words.map((word) => (/^\d+$/.test(word) ? '#' : isMethod(word) ? 'METHOD' : word)).join(' ')
    switch (shape) {
      case 'call METHOD #':
        return callMany(this.#client, words[1], number, this.#concurrency)
      case 'background on #': {
        if (this.#background) throw new Error('the background is on already')
        const background = new Background(this.#client, this.#verifier, this.#batch, number)
        await background.start()
        this.#background = background
        return { event: 'reading' }
      }
      case 'background off': {
        if (!this.#background) throw new Error('the background is off')
        const background = this.#background
        this.#background = null
        return background.finish()
      }
      case 'every #':
        if (this.#ticker) throw new Error('an interval is set already')
        this.#ticker = new Ticker(this.#client, Math.max(1, number))
        return { event: 'ticking' }
      case 'every off': {
        if (!this.#ticker) throw new Error('no interval is set')
        const ticker = this.#ticker
        this.#ticker = null
        return ticker.finish()
      }
      case 'quit':
        return null
      default:
        throw new Error(`unknown command: ${JSON.stringify(line)}`)
    }
  }
}

function parseArguments() {
  const { values } = parseArgs({
    options: {
      socket: { type: 'string' },
      tcp: { type: 'string' },
      concurrency: { type: 'string', default: '16' },
      batch: { type: 'string', default: '500' },
    },
  })
  const [concurrency, batch] = [Number(values.concurrency), Number(values.batch)]
  if (!values.socket === !values.tcp || !(concurrency >= 1) || !(batch >= 1)) {
    throw new Error('usage: client.js (--socket PATH | --tcp HOST:PORT) [--concurrency N] [--batch N]')
  }
  return { ...values, concurrency, batch }
}

async function main() {
  const options = parseArguments()
  const client = connect(options)
  const attempts = await waitReady(client)
  emit({ event: 'ready', client: 'grpc-js', version, pid: process.pid, attempts })
  const session = new Session(client, options.concurrency, options.batch)
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const answer = await session.run(line)
    if (answer === null) break
    emit(answer)
  }
  client.close()
}

// The exit status is set explicitly: work in the background would keep the process alive.
main().then(
  () => process.exit(0),
  (error) => {
    process.stdout.write(`${JSON.stringify({ event: 'error', message: error.message })}\n`, () => process.exit(1))
  },
)
