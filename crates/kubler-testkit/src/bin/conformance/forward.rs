//! A port in front of a Unix socket, for a client that knows no sockets.

use std::path::PathBuf;

use tokio::net::{TcpListener, UnixStream};

/// Carries connections to `socket` until the runtime ends; gives the port.
pub(crate) async fn to_socket(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                if let Ok(mut server) = UnixStream::connect(&socket).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    port
}
