//! Group commit: one thread brings the file to the disk for everybody who waits.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;

/// Said of everything after a failed sync.
pub(super) const NOT_DURABLE: &str = "a record could not be brought to the disk";

type Waiter = oneshot::Sender<Result<(), &'static str>>;

pub(super) struct Syncer {
    waiters: mpsc::Sender<Waiter>,
    shared: Arc<Shared>,
}

struct Shared {
    file: Mutex<Arc<File>>,
    /// After a failed sync nobody knows what is on the disk, and a later sync would not say it again: nothing new is
    /// acknowledged or signed until a restart has looked.
    failed: AtomicBool,
}

impl Syncer {
    pub(super) fn start(file: Arc<File>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            file: Mutex::new(file),
            failed: AtomicBool::new(false),
        });
        let (waiters, waiting) = mpsc::channel::<Waiter>();
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("ledger-sync".into())
            .spawn(move || sync_for_ever(&waiting, &of_thread))?;
        Ok(Self { waiters, shared })
    }

    /// From now on it is this file. What was written to the one before must be on the disk already.
    pub(super) fn switch(&self, file: &Arc<File>) {
        *self
            .shared
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Arc::clone(file);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    pub(super) fn fail(&self) {
        self.shared.failed.store(true, Ordering::Release);
    }

    /// Keeps the thread from taking the file.
    #[cfg(test)]
    pub(super) fn hold(&self) -> std::sync::MutexGuard<'_, Arc<File>> {
        self.shared
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything that was written before this call is on the disk.
    pub(super) async fn synced(&self) -> Result<(), &'static str> {
        const GONE: &str = "the thread that writes to the disk is gone";
        let (done, wait) = oneshot::channel();
        self.waiters.send(done).map_err(|_| GONE)?;
        wait.await.unwrap_or(Err(GONE))
    }
}

fn sync_for_ever(waiting: &mpsc::Receiver<Waiter>, shared: &Shared) {
    while let Ok(first) = waiting.recv() {
        let waiters: Vec<_> = std::iter::once(first).chain(waiting.try_iter()).collect();
        let file = Arc::clone(&shared.file.lock().unwrap_or_else(PoisonError::into_inner));
        let result = if shared.failed.load(Ordering::Acquire) || file.sync_data().is_err() {
            shared.failed.store(true, Ordering::Release);
            Err(NOT_DURABLE)
        } else {
            Ok(())
        };
        for waiter in waiters {
            // Whoever does not wait any more has been refused already.
            let _ = waiter.send(result);
        }
    }
}
