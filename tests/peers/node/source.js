'use strict'

// A source on the server of grpc-js: the service is written here, no SDK of Numaflow's is used.
// Commands on standard input, one JSON line each on standard output: see ../README.md.

const fs = require('node:fs')
const readline = require('node:readline')
const { parseArgs } = require('node:util')

const grpc = require('@grpc/grpc-js')
const { version } = require('@grpc/grpc-js/package.json')

const { Generator, NOT_KNOWN } = require('./generator')
const { OPTIONS, Source } = require('./service')

const INFO_END = 'U+005C__END__' // What SDKs write after the JSON object in the server-info file.
const STOP_MILLIS = 3000 // How long open connections may take to end: a client that was stopped never will.

const emit = (line) => process.stdout.write(`${JSON.stringify(line)}\n`)

/**
 * Answers a stream: a handshake by a handshake, then each request by what `answer` does. It answers without waiting, so
 * requests are answered in their order.
 */
function stream(call, answer) {
  let greeted = false
  call.on('data', (message) => {
    if (greeted) return answer(message.request)
    if (!message.handshake?.sot) {
      return call.destroy({ code: grpc.status.INVALID_ARGUMENT, details: 'handshake not present' })
    }
    greeted = true
    call.write({ handshake: { sot: true } })
  })
  call.on('end', () => call.end())
}

/** What the service does with the user code. */
function handlers(generator) {
  return {
    ReadFn: (call) =>
      stream(call, ({ num_records }) => {
        const now = Date.now()
        const event_time = { seconds: Math.floor(now / 1000), nanos: (now % 1000) * 1e6 }
        for (const { payload, offset } of generator.read(Number(num_records))) {
          call.write({ result: { payload, offset: { offset, partition_id: 0 }, event_time } })
        }
        call.write({ status: { eot: true } })
      }),
    AckFn: (call) =>
      stream(call, ({ offsets }) => {
        generator.acknowledge(offsets)
        call.write({ result: { success: {} } })
      }),
    PendingFn: (_, done) => done(null, { result: { count: generator.pending() } }),
    PartitionsFn: (_, done) => done(null, { result: { partitions: generator.partitions() } }),
    IsReady: (_, done) => done(null, { ready: true }),
  }
}

function parseArguments() {
  const { values } = parseArgs({
    options: {
      socket: { type: 'string' },
      'server-info': { type: 'string' },
      'message-bytes': { type: 'string', default: '1024' },
      'pending-value': { type: 'string', default: String(NOT_KNOWN) },
    },
  })
  const { socket, 'server-info': info = `${socket}.server-info` } = values
  const [messageBytes, pending] = [Number(values['message-bytes']), Number(values['pending-value'])]
  if (!socket || !(messageBytes >= 0) || !Number.isInteger(pending)) {
    throw new Error('usage: source.js --socket PATH [--server-info PATH] [--message-bytes N] [--pending-value N]')
  }
  return { socket, info, messageBytes, pending }
}

/** Answers commands until it is told to stop, by standard input or by a signal. */
async function serve(generator) {
  const lines = readline.createInterface({ input: process.stdin })
  process.once('SIGTERM', () => lines.close())
  for await (const line of lines) {
    if (line.trim() === 'quit') return
    if (line.trim() !== 'stats') throw new Error(`unknown command: ${JSON.stringify(line)}`)
    emit({ event: 'stats', ...generator.stats })
  }
}

async function main() {
  const { socket, info, messageBytes, pending } = parseArguments()
  const generator = new Generator(messageBytes, pending)
  const server = new grpc.Server(OPTIONS)
  server.addService(Source.service, handlers(generator))
  for (const file of [socket, info]) fs.rmSync(file, { force: true })
  await new Promise((resolve, reject) => {
    const bound = (error) => (error ? reject(error) : resolve())
    server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), bound)
  })
  fs.writeFileSync(info, JSON.stringify({ protocol: 'uds', language: 'nodejs', version }) + INFO_END)
  const answering = serve(generator)
  emit({ event: 'listening', socket, tcp: null, pid: process.pid, sdk: `grpc-js ${version}` })
  await answering

  await new Promise((resolve) => {
    const cut = setTimeout(() => server.forceShutdown(), STOP_MILLIS)
    server.tryShutdown(() => {
      clearTimeout(cut)
      resolve()
    })
  })
  fs.rmSync(info, { force: true })
  emit({ event: 'stats', ...generator.stats })
}

// The exit status is set explicitly: what is open would keep the process alive.
main().then(
  () => process.exit(0),
  (error) => {
    process.stdout.write(`${JSON.stringify({ event: 'error', message: error.message })}\n`, () => process.exit(1))
  },
)
