//! A static server for one folder on this machine alone. Any other static host does as well: no header is needed.

use std::error::Error;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use axum::Router;
use axum::http::{HeaderValue, header};
use tower_http::cors::{Any, CorsLayer};
use tower_http::services::ServeDir;
use tower_http::set_header::SetResponseHeaderLayer;

/// Serves `folder` on localhost until stopped. Port 0 takes a free one; the address is the first line printed.
pub fn run(folder: &Path, port: &str) -> Result<(), Box<dyn Error>> {
    let port: u16 = port.parse().map_err(|_| format!("found the port '{port}', expected a number up to 65535"))?;
    // So that a folder of models served this way can be opened by a page from elsewhere, by ranges.
    let sharing = CorsLayer::new().allow_origin(Any).allow_headers(Any).expose_headers([header::CONTENT_RANGE]);
    // A page that was built anew must not run with yesterday's wasm.
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
