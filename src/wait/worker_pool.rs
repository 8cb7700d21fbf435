//! System calls that may hang, made by helper threads, so that whoever waits can go at its
//! deadline.
//!
//! Work goes by lanes, one for each file system as far as it can be told: in a lane one thing is
//! done at a time. So a file system that hangs holds one thread and no more, work for it waits
//! without a thread, and other lanes never notice.
//!
//! The threads are made when there is work and end when there was none for [`IDLE`]. Each then
//! removes the watches that others had no time to remove, and the older ones after each work; while
//! somebody watches a file, one stays for that, and while there are such watches, one that has no
//! work which could hang.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sync::Monitor;
use crate::sync::Waker;
use crate::wait::watch::Watchers;
use crate::wait::{WaitContext, WaitEnd};

/// How long a helper with nothing to do stays, and a watch that nobody needs.
const IDLE: Duration = Duration::from_millis(500);

/// For so long an answer is looked for without sleep: nearly all come at once, and who sleeps until
/// then wakes late, on another core perhaps.
const AT_ONCE: Duration = Duration::from_micros(30);

/// Paths are resolved in buffers of `PATH_MAX` bytes, and that is all that is deep.
const STACK: usize = 256 * 1024;

/// Which system calls can hang together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CallQueue {
    /// Those on the file system of this device.
    Device(u64),
    /// Those on paths in this directory, of which nothing more can be known without touching it.
    Directory(PathBuf),
    /// None: it is about there being a helper.
    Nothing,
    /// Those on a caller's descriptor, by the mount that it was opened on.
    Mount(u64),
}

/// The helpers of a process.
pub(crate) struct WorkerPool {
    office: Monitor<Office>,
    /// How many have nothing to do, for who has no time for the mutex.
    idle: AtomicUsize,
    watchers: Arc<Watchers>,
}

#[derive(Default)]
struct Office {
    lanes: HashMap<CallQueue, VecDeque<(u64, Job)>>,
    /// Lanes that have work and nobody who does it.
    waiting: VecDeque<CallQueue>,
    submitted: u64,
}

type Job = Box<dyn FnOnce() + Send>;

/// What becomes of work that has not begun when nobody waits for it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnTimeout {
    /// It is taken back, so that none pile up behind work that hangs.
    Remove,
    /// It stays in its lane, only to be dropped there: it has a descriptor, and to close that can
    /// hang like anything else.
    DropOnWorker,
    /// It is done all the same, and here if no thread can be had.
    RunAnyway,
}

/// Where one piece of work stands.
enum Stage<T> {
    Queued,
    Start,
    Done(T),
    /// Nobody waits for it any more.
    Abandoned,
}

/// The wait was over before the work was done.
pub(crate) struct Late {
    pub(crate) over: WaitEnd,
    /// It has begun, or must be done, and will be some day. Otherwise it never will.
    pub(crate) begun: bool,
}

impl WorkerPool {
    pub(crate) fn new(watchers: Arc<Watchers>) -> Self {
        let idle = AtomicUsize::new(0);
        Self { office: Monitor::default(), idle, watchers }
    }

    /// Whether watches that linger are swept before long: by the helper that will have been idle.
    pub(crate) fn will_sweep(&self) -> bool {
        self.idle.load(Ordering::SeqCst) > 0
    }

    /// Has a helper be there that [will sweep](Self::will_sweep), unless no thread can be had.
    pub(crate) fn prepare_to_sweep(&'static self) {
        if !self.will_sweep() {
            self.leave_to(&CallQueue::Nothing, || ());
        }
    }

    /// Does `work` in `lane`, and waits for it. If the wait is over first, and the work has
    /// begun, or is done although it has not, `leaving` is called here, and after that `abandoned`
    /// gets what comes of it, on the helper.
    ///
    /// # Errors
    /// That of starting a thread; work that is done in any case is done here then.
    pub(crate) fn run<T: Send + 'static>(
        &'static self,
        lane: CallQueue,
        context: &WaitContext,
        unbegun: OnTimeout,
        work: impl FnOnce() -> T + Send + 'static,
        abandoned: impl FnOnce(T) + Send + 'static,
        leaving: impl FnOnce(),
    ) -> io::Result<Result<T, Late>> {
        let stage = Arc::new(Mutex::new(Stage::Queued));
        let waker: Arc<Waker> = Arc::clone(&context.waker);
        let job = {
            let stage = Arc::clone(&stage);
            move || {
                {
                    let mut stage = stage.lock();
                    match *stage {
                        Stage::Abandoned if unbegun == OnTimeout::RunAnyway => {}
                        Stage::Abandoned => return,
                        _ => *stage = Stage::Start,
                    }
                }
                let done = work();
                let mut stage = stage.lock();
                if let Stage::Abandoned = *stage {
                    drop(stage);
                    return abandoned(done);
                }
                *stage = Stage::Done(done);
                drop(stage);
                waker.wake();
            }
        };
        let number = match self.submit(&lane, Box::new(job)) {
            Ok(number) => Some(number),
            Err((_, job)) if unbegun == OnTimeout::RunAnyway => {
                job();
                None
            }
            Err((error, _)) => return Err(error),
        };
        let submitted = Instant::now();
        while !matches!(*stage.lock(), Stage::Done(_)) && submitted.elapsed() < AT_ONCE {
            thread::yield_now();
        }
        loop {
            let over = context.over();
            let mut now = stage.lock();
            match (std::mem::replace(&mut *now, Stage::Abandoned), over) {
                (Stage::Done(done), _) => return Ok(Ok(done)),
                (was, Some(over)) => {
                    let begun = unbegun == OnTimeout::RunAnyway || matches!(was, Stage::Start);
                    if begun {
                        // Before the helper can see that nobody waits.
                        leaving();
                    }
                    drop(now);
                    if !begun
                        && unbegun == OnTimeout::Remove
                        && let Some(number) = number
                    {
                        self.withdraw(&lane, number);
                    }
                    return Ok(Err(Late { over, begun }));
                }
                (was, None) => *now = was,
            }
            drop(now);
            context.waker.sleep(context.until());
        }
    }

    /// Leaves work to a lane, without waiting for it; does it here if no thread can be had.
    pub(crate) fn leave_to(&'static self, lane: &CallQueue, work: impl FnOnce() + Send + 'static) {
        if let Err((_, job)) = self.submit(lane, Box::new(work)) {
            job();
        }
    }

    /// Tells the job's number, or gives it back where no thread can be had.
    fn submit(&'static self, lane: &CallQueue, job: Job) -> Result<u64, (io::Error, Job)> {
        let mut office = self.office.lock();
        office.submitted += 1;
        let number = office.submitted;
        if let Some(jobs) = office.lanes.get_mut(lane) {
            jobs.push_back((number, job));
            return Ok(number);
        }
        let idle = self.idle.load(Ordering::SeqCst).saturating_sub(office.waiting.len());
        // What lingers must not wait for work that hangs.
        if idle == 0 || idle == 1 && self.watchers.linger() {
            let helper = thread::Builder::new().name("lockspace".into()).stack_size(STACK);
            if let Err(error) = helper.spawn(move || self.help())
                && idle == 0
            {
                return Err((error, job));
            }
        }
        office.lanes.insert(lane.clone(), VecDeque::from([(number, job)]));
        office.waiting.push_back(lane.clone());
        // Who is woken wants the mutex first.
        drop(office);
        if idle > 0 {
            self.office.notify_one();
        }
        Ok(number)
    }

    /// Takes a job back that nobody waits for.
    fn withdraw(&self, lane: &CallQueue, number: u64) {
        let job = {
            let mut office = self.office.lock();
            office.lanes.get_mut(lane).and_then(|jobs| {
                let at = jobs.iter().position(|&(other, _)| other == number)?;
                jobs.remove(at)
            })
        };
        // Not under the mutex of all lanes.
        drop(job);
    }

    /// A helper's life.
    fn help(&self) {
        let mut office = self.office.lock();
        loop {
            let Some(lane) = office.waiting.pop_front() else {
                let until = Instant::now() + IDLE;
                self.idle.fetch_add(1, Ordering::SeqCst);
                while office.waiting.is_empty() && Instant::now() < until {
                    office = self.office.wait(office, Some(until));
                }
                let others = self.idle.fetch_sub(1, Ordering::SeqCst) - 1;
                if !office.waiting.is_empty() {
                    continue;
                }
                let stays = others == 0 && self.watchers.is_watching();
                drop(office);
                self.watchers.sweep(Duration::ZERO);
                office = self.office.lock();
                if !stays && office.waiting.is_empty() {
                    return;
                }
                continue;
            };
            while let Some((_, job)) = office.lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
                drop(office);
                job();
                self.watchers.sweep(IDLE);

                office = self.office.lock();
            }
            office.lanes.remove(&lane);
        }
    }
}

impl fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPool").finish_non_exhaustive()
    }
}
