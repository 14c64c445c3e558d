//! What a process between a frontend and its engine costs at least: one that copies bytes and does nothing else. Each
//! direction of a connection is a thread, so a hop is one wake-up, one read and one write.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use farside::wire::connection_file::{ConnectionFile, Endpoint, Socket};

use super::Result;

const BUFFER_BYTES: usize = 64 << 10;

/// Serves the connection file `here` with the kernel of the connection file `there`, which runs.
pub fn run(there: &str, here: &str) -> Result<()> {
    let [there, here] = [read(there)?, read(here)?];
    let mut serving = Vec::new();
    for socket in Socket::ALL {
        let kernel = there.endpoint(socket);
        let accept = listen(&here.endpoint(socket))?;
        serving.push(std::thread::spawn(move || -> std::io::Result<()> {
            loop {
                let (frontend, kernel) = (accept()?, connect(&kernel)?);
                copy(frontend.try_clone()?, kernel.try_clone()?);
                copy(kernel, frontend);
            }
        }));
    }
    println!("{}", serde_json::json!({ "ready": true }));
    for thread in serving {
        thread.join().map_err(|_| "a thread has failed")??;
    }
    Ok(())
}

fn read(path: &str) -> Result<ConnectionFile> {
    Ok(ConnectionFile::parse(&std::fs::read_to_string(path)?)?)
}

/// The next connection, each time it is called.
type Accept = Box<dyn Fn() -> std::io::Result<File> + Send>;

fn listen(endpoint: &Endpoint) -> std::io::Result<Accept> {
    Ok(match endpoint {
        Endpoint::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port))?;
            Box::new(move || of_tcp(listener.accept()?.0))
        }
        Endpoint::Ipc { path } => {
            let listener = UnixListener::bind(path)?;
            Box::new(move || Ok(File::from(OwnedFd::from(listener.accept()?.0))))
        }
    })
}

fn connect(endpoint: &Endpoint) -> std::io::Result<File> {
    match endpoint {
        Endpoint::Tcp { host, port } => of_tcp(TcpStream::connect((host.as_str(), *port))?),
        Endpoint::Ipc { path } => Ok(File::from(OwnedFd::from(UnixStream::connect(path)?))),
    }
}

fn of_tcp(stream: TcpStream) -> std::io::Result<File> {
    stream.set_nodelay(true)?;
    Ok(File::from(OwnedFd::from(stream)))
}

/// Copies until one of the two ends.
fn copy(mut from: File, mut to: File) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..read]).is_err() {
                return;
            }
        }
    });
}
