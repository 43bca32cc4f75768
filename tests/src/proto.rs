//! The generated messages and client of `source.v1.Source`.

#![allow(
    missing_docs,
    reason = "generated from proto/source.proto, which is documented"
)]

tonic::include_proto!("source.v1");
