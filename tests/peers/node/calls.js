'use strict'

const grpc = require('@grpc/grpc-js')

const METHODS = ['PendingFn', 'IsReady', 'PartitionsFn']

/** Whether it can be called: a method of the service, or any path. */
const isMethod = (word) => METHODS.includes(word) || word.startsWith('/')

const asIs = (bytes) => bytes

/** One unary call; what the answer says, in the words of the line protocol. It has no deadline, like Numaflow's. */
function callOnce(client, method) {
  return new Promise((resolve, reject) => {
    const done = (error, answer) => {
      if (error) reject(error)
      else if (method.startsWith('/')) resolve('answered')
      else if (method === 'IsReady') resolve(String(answer.ready))
      else if (!answer.result) resolve('absent')
      else if (method === 'PendingFn') resolve(String(answer.result.count))
      else resolve(answer.result.partitions.join(','))
    }
    if (method.startsWith('/')) client.makeUnaryRequest(method, asIs, asIs, Buffer.alloc(0), done)
    else client[method]({}, done)
  })
}

/** The name of a failed call's status. What isn't a status is a fault of this program, and is passed on. */
function codeName(error) {
  if (grpc.status[error.code] === undefined) throw error
  return grpc.status[error.code]
}

/** Counts how calls ended. */
class Outcomes {
  ok = 0
  errors = {}
  values = {}

  async add(call) {
    try {
      const value = await call
      this.ok += 1
      this.values[value] = (this.values[value] ?? 0) + 1
    } catch (error) {
      const name = codeName(error)
      this.errors[name] = (this.errors[name] ?? 0) + 1
    }
  }
}

/** `count` calls, `concurrency` of them in flight. */
async function callMany(client, method, count, concurrency) {
  const start = process.hrtime.bigint()
  const outcomes = new Outcomes()
  let left = count
  const worker = async () => {
    while (left > 0) {
      left -= 1
      await outcomes.add(callOnce(client, method))
    }
  }
  await Promise.all(Array.from({ length: concurrency }, worker))
  return { event: 'called', method, ...outcomes, seconds: Number(process.hrtime.bigint() - start) / 1e9 }
}

/** A wish to stop that can be waited for. */
class Stop {
  wanted = false
  #wake
  #asked = new Promise((resolve) => (this.#wake = resolve))

  ask() {
    this.wanted = true
    this.#wake()
  }

  /** Waits so long, or until the wish; whether there is one. */
  async within(millis) {
    let timer
    await Promise.race([this.#asked, new Promise((resolve) => (timer = setTimeout(resolve, millis)))])
    clearTimeout(timer)
    return this.wanted
  }
}

/** PendingFn at an interval. */
class Ticker {
  #stop = new Stop()
  #outcomes = new Outcomes()
  #done

  constructor(client, millis) {
    this.#done = this.#run(client, millis)
  }

  async #run(client, millis) {
    while (!(await this.#stop.within(millis))) await this.#outcomes.add(callOnce(client, 'PendingFn'))
  }

  async finish() {
    this.#stop.ask()
    await this.#done
    const failed = Object.values(this.#outcomes.errors).reduce((sum, count) => sum + count, 0)
    return { event: 'every', count: this.#outcomes.ok + failed, ...this.#outcomes }
  }
}

module.exports = { Stop, Ticker, callMany, callOnce, codeName, isMethod }
