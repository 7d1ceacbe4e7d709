//! A static server for one folder, reachable from this machine only. The page needs no special header, so any other static host
//! serves it as well.

use std::error::Error;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use axum::Router;
use axum::http::{HeaderValue, header};
use tower_http::cors::{Any, CorsLayer};
use tower_http::services::ServeDir;
use tower_http::set_header::SetResponseHeaderLayer;

/// Serves `folder` on localhost until the process is stopped. Port 0 picks a free port. The first printed line is the address.
///
/// Errors: `port` is not a port, or it cannot be opened.
pub fn run(folder: &Path, port: &str) -> Result<(), Box<dyn Error>> {
    let port: u16 = port.parse().map_err(|_| format!("found the port '{port}', expected a number up to 65535"))?;
    // With these headers a page of another site can read models from the served folder by byte ranges.
    let sharing = CorsLayer::new().allow_origin(Any).allow_headers(Any).expose_headers([header::CONTENT_RANGE]);
    // A rebuilt page must not run with an older wasm from the browser's cache.
    let fresh = SetResponseHeaderLayer::overriding(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let app = Router::new().fallback_service(ServeDir::new(folder)).layer(sharing).layer(fresh);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        println!("http://localhost:{}/", listener.local_addr()?.port());
        io::stdout().flush()?;
        axum::serve(listener, app).await?;
        Ok(())
    })
}
