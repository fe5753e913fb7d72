//! Signals as something to wait for, together with other things: what a person or a supervisor sends to this
//! process must be heard while it is waiting for a server.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::clock::Deadline;
use crate::process::watched;

/// How often a wait without a bound is begun anew.
const WAIT_BEGUN_ANEW: Duration = Duration::from_secs(3600);

/// The signals that came.
pub struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    /// Those that came together with one that was answered.
    waiting: Vec<i32>,
}

impl Signals {
    /// Listens from now on: none of these ends this process by itself any more.
    pub fn listen(numbers: &[i32]) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        Ok(Self {
            delivery: SignalDelivery::with_pipe(read, write, SignalOnly, numbers)?,
            waiting: Vec::new(),
        })
    }

    /// Waits for one of `numbers`, or until `other` is readable or closed, at most until `deadline`. Signals that
    /// are not of `numbers` are dropped: nobody is there to hear them.
    pub fn wait(
        &mut self,
        numbers: &[i32],
        other: BorrowedFd<'_>,
        deadline: Option<Deadline>,
    ) -> io::Result<Came> {
        loop {
            while let Some(number) = self.waiting.pop() {
                if numbers.contains(&number) {
                    return Ok(Came::Signal(number));
                }
            }
            let bound = deadline.unwrap_or_else(|| Deadline::after(WAIT_BEGUN_ANEW));
            let came = self.delivery.get_read().as_fd();
            match watched::first_of(&[other, came], bound)? {
                Some(0) => return Ok(Came::Other),
                Some(_) => self.waiting.extend(self.delivery.pending()),
                None if deadline.is_some() => return Ok(Came::Nothing),
                None => {}
            }
        }
    }

    /// Drops those that came so far.
    pub fn forget(&mut self) {
        self.waiting.clear();
        self.delivery.pending().for_each(drop);
    }
}

/// What came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// One of the signals.
    Signal(i32),
    /// What else was waited for.
    Other,
    /// Nothing in time.
    Nothing,
}

/// Work on a thread of its own, so that this one hears signals meanwhile. Whoever stops waiting leaves it alone.
pub struct Work<T> {
    finished: UnixStream,
    result: Receiver<T>,
}

impl<T: Send + 'static> Work<T> {
    /// Starts it.
    pub fn start(work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (finished, running) = UnixStream::pair()?;
        let (sender, result) = channel();
        std::thread::Builder::new()
            .name("work".to_owned())
            .spawn(move || {
                let _ = sender.send(work());
                drop(running);
            })?;
        Ok(Self { finished, result })
    }

    /// What it came to, once it is finished.
    pub fn result(&self) -> Option<T> {
        self.result.try_recv().ok()
    }
}

impl<T> AsFd for Work<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.finished.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use signal_hook::consts::{SIGUSR1, SIGUSR2};

    use super::*;

    #[test]
    fn a_signal_is_heard_while_something_is_under_way_and_another_is_dropped() {
        let mut signals = Signals::listen(&[SIGUSR1, SIGUSR2]).unwrap();
        let (held, release) = channel::<()>();
        let work = Work::start(move || {
            let _ = release.recv();
            7
        })
        .unwrap();
        signal_hook::low_level::raise(SIGUSR1).unwrap();
        let soon = Some(Deadline::after(Duration::from_millis(50)));
        assert_eq!(
            signals.wait(&[SIGUSR2], work.as_fd(), soon).unwrap(),
            Came::Nothing
        );
        signal_hook::low_level::raise(SIGUSR2).unwrap();
        assert_eq!(
            signals.wait(&[SIGUSR2], work.as_fd(), None).unwrap(),
            Came::Signal(SIGUSR2)
        );
        assert_eq!(work.result(), None);
        drop(held);
        assert_eq!(
            signals.wait(&[SIGUSR2], work.as_fd(), None).unwrap(),
            Came::Other
        );
        assert_eq!(work.result(), Some(7));
    }
}
