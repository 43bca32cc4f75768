'use strict'

const path = require('node:path')

const grpc = require('@grpc/grpc-js')
const protoLoader = require('@grpc/proto-loader')

const PROTO = path.join(__dirname, '../../proto/source.proto')
const MAX_MESSAGE = 64 << 20 // As in Numaflow's data plane.

// Longs as strings keep all 64 bits. With defaults, an absent number is 0 and an absent message is null.
const definition = protoLoader.loadSync(PROTO, { keepCase: true, longs: String, defaults: true })

/** `source.v1.Source`: a client, with the description of the service for a server. */
const { Source } = grpc.loadPackageDefinition(definition).source.v1

/** Of a channel or a server. */
const OPTIONS = {
  'grpc.max_receive_message_length': MAX_MESSAGE,
  'grpc.max_send_message_length': MAX_MESSAGE,
}

module.exports = { OPTIONS, Source }
