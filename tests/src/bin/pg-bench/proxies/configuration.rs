//! The proxies' configurations. What is set beside the sockets is what a stream that never ends takes, and, where it says so, what
//! makes them faster.

use std::path::Path;

use super::REJECTED;

/// Envoy: its HTTP connection manager, one route to the source, and one that rejects.
pub fn envoy(listen: &Path, upstream: &Path) -> String {
    let endpoint = |path: &Path| serde_json::json!({"pipe": {"path": path}});
    let router = serde_json::json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
        },
    });
    // A request of gRPC's gets the status as gRPC has it: UNIMPLEMENTED.
    let reject = serde_json::json!({
        "match": {"path": REJECTED},
        "direct_response": {"status": 404},
    });
    let pass = serde_json::json!({
        "match": {"prefix": "/"},
        "route": {"cluster": "source", "timeout": "0s"},
    });
    let manager = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "source",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{
            "name": "source",
            "domains": ["*"],
            "routes": [reject, pass],
        }]},
    });
    let http2 = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    let configuration = serde_json::json!({"static_resources": {
        "listeners": [{
            "name": "source",
            "address": endpoint(listen),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }]}],
        }],
        "clusters": [{
            "name": "source",
            "type": "STATIC",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
            },
            "load_assignment": {
                "cluster_name": "source",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint(upstream)}}]}],
            },
        }],
    }});
    // JSON is YAML, too.
    configuration.to_string()
}

/// nginx: `grpc_pass`. Tuned, it keeps connections to the source and has larger buffers; otherwise it makes one for every call.
pub fn nginx(directory: &Path, listen: &Path, upstream: &Path, tuned: bool) -> String {
    let (directory, listen, upstream) = (directory.display(), listen.display(), upstream.display());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {directory}/{name};\n"))
        .concat();
    let (keep, buffers) = if tuned {
        (
            "    keepalive 16;\n    keepalive_requests 1000000000;\n    keepalive_timeout 1h;\n",
            "  http2_recv_buffer_size 1m;\n  http2_chunk_size 64k;\n  http2_body_preread_size 1m;\n  grpc_buffer_size 64k;\n  \
             client_body_buffer_size 1m;\n  output_buffers 4 256k;\n",
        )
    } else {
        ("", "")
    };
    format!(
        "daemon off;
user root;
pid {directory}/pid;
error_log stderr warn;
worker_processes 1;
events {{
  worker_connections 1024;
}}
http {{
  access_log off;
{temporary}  client_max_body_size 0;
  client_body_timeout 1h;
  send_timeout 1h;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  grpc_read_timeout 1h;
  grpc_send_timeout 1h;
{buffers}  upstream source {{
    server unix:{upstream};
{keep}  }}
  server {{
    listen unix:{listen} http2;
    location = {REJECTED} {{
      default_type application/grpc;
      add_header grpc-status 12 always;
      return 204;
    }}
    location / {{
      grpc_pass grpc://source;
    }}
  }}
}}
"
    )
}

/// HAProxy: HTTP/2 on both sides. Tuned, it has one thread and larger buffers, windows and frames.
pub fn haproxy(listen: &Path, upstream: &Path, tuned: bool) -> String {
    let (listen, upstream) = (listen.display(), upstream.display());
    let tuning = if tuned {
        "  nbthread 1\n  tune.bufsize 131072\n  tune.h2.initial-window-size 1048576\n  tune.h2.max-frame-size 65536\n"
    } else {
        ""
    };
    let options = if tuned { "  http-reuse always\n" } else { "" };
    format!(
        "global
  maxconn 1000
{tuning}defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
{options}frontend client
  bind unix@{listen} proto h2
  http-request return status 200 content-type application/grpc hdr grpc-status 12 if {{ path {REJECTED} }}
  default_backend source
backend source
  server source unix@{upstream} proto h2
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_names_both_sockets_and_what_it_rejects() {
        let (listen, upstream) = (Path::new("/a/listen"), Path::new("/a/upstream"));
        for text in [
            envoy(listen, upstream),
            nginx(Path::new("/a"), listen, upstream, false),
            nginx(Path::new("/a"), listen, upstream, true),
            haproxy(listen, upstream, false),
            haproxy(listen, upstream, true),
        ] {
            for part in ["/a/listen", "/a/upstream", REJECTED] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
            let (open, close) = (text.matches('{').count(), text.matches('}').count());
            assert_eq!(open, close, "{text}");
        }
    }

    #[test]
    fn tuning_is_more_than_nothing() {
        let (directory, listen, upstream) = (Path::new("/d"), Path::new("/l"), Path::new("/u"));
        let nginx = |tuned| nginx(directory, listen, upstream, tuned).len();
        let haproxy = |tuned| haproxy(listen, upstream, tuned).len();
        assert!(nginx(true) > nginx(false) && haproxy(true) > haproxy(false));
    }
}
