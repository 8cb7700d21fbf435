//! Workers: threads that make system calls which may hang, so that a waiting call can leave at its
//! deadline.
//!
//! There is one queue of jobs for each file system, as far as file systems can be told apart
//! ([`CallQueue`]), and one job of a queue runs at a time. So a file system that hangs occupies one
//! worker only; its other jobs wait without a thread, and other queues are not delayed.
//!
//! Workers start when there are jobs, [`MAX_WORKERS`] at most, and end when there were none for
//! [`IDLE_TIME`]. A worker that is idle for so long removes the watches that waits have cached, and
//! after each job the older ones; while a wait watches a file one worker stays for that, and while
//! there are cached watches, one that runs no job.
//!
//! Where no worker can be had, because all of them hang or because no thread can be started, a call
//! that cannot hang is made by its caller, as a try does. So what hangs does not stop what does not.
//!
//! A caller leaves at its deadline. Only where the file system does not delay the answer, it stays a
//! moment longer: where the worker waits for a processor, or the call cannot hang. Otherwise a file
//! system that answers would be said to give no answer.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{WaitContext, WaitEnd, WatchPool};
use crate::sync::{Monitor, Waker};
use crate::sys::procfs;

/// How long a worker stays without a job, and how long a watch stays cached.
const IDLE_TIME: Duration = Duration::from_millis(500);

/// How long a caller polls for its job's result before it sleeps: nearly all jobs are done by then,
/// and waking from a sleep costs more.
const SPIN_TIME: Duration = Duration::from_micros(30);

/// Paths are resolved in buffers of `PATH_MAX` bytes, and a subscriber of `tracing` may run here. The
/// crate's documentation names this size.
const STACK_SIZE: usize = 512 * 1024;

/// So many file systems, or directories where file systems cannot be told apart, may hang before
/// jobs for others that can hang have to wait.
const MAX_WORKERS: usize = 64;

/// A call that has not returned for so long is said to be unanswered; before that, it may have been
/// made just now.
pub(crate) const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(100);

/// A call is given so long to return, however soon the deadline comes.
const LEAST_TIME: Duration = Duration::from_millis(10);

/// So many jobs of one queue may have a descriptor each that was made for them. Those whose callers
/// have left keep theirs until the file system answers.
const MAX_DESCRIPTORS: usize = 16;

/// Which system calls can hang together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CallQueue {
    /// Calls on the file system of this device.
    Device(u64),
    /// Calls on paths in this directory: its file system cannot be found out without a call that
    /// may hang.
    Directory(PathBuf),
    /// Calls on a caller's descriptor, by the mount that it was opened on.
    Mount(u64),
    /// No system call: the job only makes sure that there is a worker.
    Housekeeping,
}

impl CallQueue {
    /// The queue of calls on the file at this path.
    pub(crate) fn of_path(path: &Path) -> Self {
        Self::Directory(path.parent().unwrap_or(path).to_owned())
    }
}

/// The workers of a process.
pub(crate) struct WorkerPool {
    state: Monitor<PoolState>,
    /// How many workers have no job, to be read without the mutex.
    idle: AtomicUsize,
    watches: Arc<WatchPool>,
}

#[derive(Default)]
struct PoolState {
    /// The queues that have jobs, or a worker that runs one.
    queues: HashMap<CallQueue, Jobs>,
    /// The queues that have jobs and no worker.
    waiting: VecDeque<CallQueue>,
    workers: usize,
    submitted: u64,
    /// How many jobs of a queue have a descriptor each.
    descriptors: HashMap<CallQueue, usize>,
}

/// The jobs of one queue.
struct Jobs {
    waiting: VecDeque<(u64, Job)>,
    worker: WorkerOf,
}

/// Who runs the jobs of a queue.
#[derive(Clone, Copy)]
enum WorkerOf {
    Nobody,
    /// The thread of this number, if it knows that.
    Thread(Option<u32>),
}

impl PoolState {
    /// How many of these workers without a job will have none once each queue that waits has one.
    fn spare(&self, idle: usize) -> usize {
        idle.saturating_sub(self.waiting.len())
    }

    /// Who runs the jobs of this queue.
    fn worker_of(&self, queue: &CallQueue) -> WorkerOf {
        self.queues.get(queue).map_or(WorkerOf::Nobody, |jobs| jobs.worker)
    }

    /// Whether another queue would wait for a job to end.
    fn is_full(&self, idle: usize) -> bool {
        self.spare(idle) == 0 && self.workers >= MAX_WORKERS
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// What becomes of a job that no worker has begun when its caller leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnTimeout {
    /// The job is removed, so that jobs do not pile up behind one that hangs.
    Remove,
    /// The job stays in its queue, and a worker drops it without running it: the job owns a
    /// descriptor, and closing that can hang.
    DropOnWorker,
    /// The job runs all the same.
    RunAnyway,
}

#[derive(Clone, Copy)]
pub(crate) struct CallOptions<'a> {
    pub(crate) on_timeout: OnTimeout,
    /// Whether the call is known not to hang. Asked only where there is no worker for it, or no
    /// answer at the deadline.
    pub(crate) cannot_hang: &'a dyn Fn() -> bool,
}

/// What to do with a job where all workers that there may be have one that does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenFull {
    Refuse,
    Queue,
}

/// Why a job is in no queue.
enum NotQueued {
    Full,
    NoThread(io::Error),
}

/// The right to have a descriptor in one job of a queue.
pub(crate) struct DescriptorPermit {
    pool: &'static WorkerPool,
    queue: CallQueue,
}

impl Drop for DescriptorPermit {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        if let Some(count) = state.descriptors.get_mut(&self.queue) {
            *count -= 1;
            if *count == 0 {
                state.descriptors.remove(&self.queue);
            }
        }
    }
}

/// Where a job stands.
enum JobState<T> {
    Queued,
    Running,
    Done(thread::Result<T>),
    /// The caller has left.
    Abandoned,
}

/// The wait has ended before the job was done.
pub(crate) struct TimedOut(pub(crate) WaitEnd);

/// No worker is idle and none can be started: the job has not run.
#[derive(Debug)]
pub(crate) struct NoWorker(pub(crate) io::Error);

/// What the caller and the worker of a job share.
struct Call<T> {
    state: Mutex<JobState<T>>,
    waker: Arc<Waker>,
    on_timeout: OnTimeout,
}

impl<T> Call<T> {
    /// Runs the job on the worker, or drops it if the caller has left.
    fn run(&self, work: impl FnOnce() -> T, abandoned: impl FnOnce(Option<T>)) {
        {
            let mut state = self.state.lock();
            match *state {
                JobState::Abandoned if self.on_timeout != OnTimeout::RunAnyway => return,
                JobState::Abandoned => {}
                _ => *state = JobState::Running,
            }
        }
        let done = catch_unwind(AssertUnwindSafe(work));
        let mut state = self.state.lock();
        if let JobState::Abandoned = *state {
            drop(state);
            return abandoned(done.ok());
        }
        *state = JobState::Done(done);
        drop(state);
        self.waker.wake();
    }

    fn is_done(&self) -> bool {
        matches!(*self.state.lock(), JobState::Done(_))
    }

    /// Returns the job's result, if it is done. Else, if the wait has an `end`, abandons the job,
    /// and calls `leaving` before the worker can see that, if the job runs or will run.
    fn poll(&self, end: Option<WaitEnd>, leaving: impl FnOnce()) -> Option<Result<T, TimedOut>> {
        let mut state = self.state.lock();
        match (std::mem::replace(&mut *state, JobState::Abandoned), end) {
            (JobState::Done(done), _) => Some(Ok(resume_panic(done))),
            (was, None) => {
                *state = was;
                None
            }
            (was, Some(end)) => {
                let is_running = matches!(was, JobState::Running);
                if is_running || self.on_timeout == OnTimeout::RunAnyway {
                    leaving();
                }
                Some(Err(TimedOut(end)))
            }
        }
    }
}

/// A job that has panicked panics on the thread of its caller too.
fn resume_panic<T>(done: Result<T, Box<dyn Any + Send>>) -> T {
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl WorkerPool {
    pub(crate) fn new(watches: Arc<WatchPool>) -> Self {
        Self { state: Monitor::default(), idle: AtomicUsize::new(0), watches }
    }

    /// Whether a worker is idle, and so will remove cached watches soon.
    pub(crate) fn will_drop_cached(&self) -> bool {
        self.idle.load(Ordering::SeqCst) > 0
    }

    /// Starts a worker if none [is idle](Self::will_drop_cached) to remove cached watches later.
    /// Without effect if no thread can be started.
    pub(crate) fn prepare_to_drop_cached(&'static self) {
        if !self.will_drop_cached() {
            let _ = self.submit(&CallQueue::Housekeeping, Box::new(|| ()), WhenFull::Refuse);
        }
    }

    /// Runs `work` on a worker, in order of `queue`, and waits for what it returns.
    ///
    /// If the wait ends first, and the job runs or will run all the same, `leaving` is called on
    /// this thread, and then, on the worker, `abandoned` with what the job returns; `None` if it panics.
    ///
    /// # Errors
    /// [`NoWorker`] where no thread can be started, and the call may hang.
    pub(crate) fn run<T: Send + 'static>(
        &'static self,
        queue: &CallQueue,
        (context, options): (&WaitContext, CallOptions<'_>),
        work: impl FnOnce() -> T + Send + 'static,
        abandoned: impl FnOnce(Option<T>) + Send + 'static,
        mut leaving: impl FnMut(),
    ) -> Result<Result<T, TimedOut>, NoWorker> {
        let waker = Arc::clone(&context.waker);
        let on_timeout = options.on_timeout;
        let call = Arc::new(Call { state: Mutex::new(JobState::Queued), waker, on_timeout });
        let job: Job = {
            let call = Arc::clone(&call);
            Box::new(move || call.run(work, abandoned))
        };
        let number = self.submit_or_run(queue, options, job)?;
        let submitted = Instant::now();
        while !call.is_done() && submitted.elapsed() < SPIN_TIME {
            thread::yield_now();
        }
        loop {
            let end = match context.end() {
                Some(WaitEnd::TimedOut)
                    if submitted.elapsed() < LEAST_TIME
                        || self.is_delayed_here(queue)
                        || submitted.elapsed() < UNRESPONSIVE_AFTER && (options.cannot_hang)() =>
                {
                    None
                }
                end => end,
            };
            match call.poll(end, &mut leaving) {
                None => context.waker.sleep(wake_up_at(context, submitted)),
                Some(Err(timed_out)) => {
                    if let (OnTimeout::Remove, Some(number)) = (on_timeout, number) {
                        self.remove(queue, number);
                    }
                    return Ok(Err(timed_out));
                }
                Some(done) => return Ok(done),
            }
        }
    }

    /// Whether the jobs of a queue are delayed by nothing but this machine: no worker has come to them
    /// yet, or theirs waits for a processor.
    fn is_delayed_here(&self, queue: &CallQueue) -> bool {
        let worker = {
            let state = self.state.lock();
            let idle = self.idle.load(Ordering::SeqCst);
            match state.worker_of(queue) {
                WorkerOf::Nobody => return idle > 0 || state.workers < MAX_WORKERS,
                WorkerOf::Thread(number) => number,
            }
        };
        worker.is_some_and(procfs::is_runnable)
    }

    /// Runs `work` on a worker, without waiting for it; or here where none can be had.
    pub(crate) fn run_detached(
        &'static self,
        queue: &CallQueue,
        cannot_hang: &dyn Fn() -> bool,
        work: impl FnOnce() + Send + 'static,
    ) {
        let options = CallOptions { on_timeout: OnTimeout::RunAnyway, cannot_hang };
        let queued = self.submit_or_run(queue, options, Box::new(work));
        debug_assert!(queued.is_ok(), "it has been run here otherwise");
    }

    /// The right to make a descriptor for one job of this queue. Where there are many already, waits
    /// until the file system answers, with nothing that would be left behind.
    pub(crate) fn permit_descriptor(
        &'static self,
        queue: &CallQueue,
        context: &WaitContext,
    ) -> Result<DescriptorPermit, TimedOut> {
        let mut worker_is_there = true;
        loop {
            {
                let mut state = self.state.lock();
                let count = state.descriptors.entry(queue.clone()).or_default();
                if *count < MAX_DESCRIPTORS || !worker_is_there {
                    *count += 1;
                    return Ok(DescriptorPermit { pool: self, queue: queue.clone() });
                }
            }
            let options = CallOptions { on_timeout: OnTimeout::Remove, cannot_hang: &|| false };
            match self.run(queue, (context, options), || (), drop, || ()) {
                Ok(turn) => turn?,
                // Then no jobs are queued either.
                Err(NoWorker(_)) => worker_is_there = false,
            }
        }
    }

    /// Queues a job, and returns its number; or runs it here, where no worker can be had.
    fn submit_or_run(
        &'static self,
        queue: &CallQueue,
        options: CallOptions<'_>,
        job: Job,
    ) -> Result<Option<u64>, NoWorker> {
        let refused = match self.submit(queue, job, WhenFull::Refuse) {
            Ok(number) => return Ok(Some(number)),
            Err(refused) => refused,
        };
        let refused = match refused {
            (_, job) if (options.cannot_hang)() => {
                job();
                return Ok(None);
            }
            (NotQueued::Full, job) => self.submit(queue, job, WhenFull::Queue),
            no_thread => Err(no_thread),
        };
        match refused {
            Ok(number) => Ok(Some(number)),
            // What it has must not be dropped.
            Err((_, job)) if options.on_timeout == OnTimeout::RunAnyway => {
                job();
                Ok(None)
            }
            Err((NotQueued::NoThread(error), _)) => Err(NoWorker(error)),
            Err((NotQueued::Full, _)) => unreachable!("then it waits in its queue"),
        }
    }

    /// Returns the job's number; or the job, if it is in no queue.
    fn submit(
        &'static self,
        queue: &CallQueue,
        job: Job,
        when_full: WhenFull,
    ) -> Result<u64, (NotQueued, Job)> {
        let mut state = self.state.lock();
        state.submitted += 1;
        let number = state.submitted;
        let idle = self.idle.load(Ordering::SeqCst);
        let is_free = matches!(state.worker_of(queue), WorkerOf::Nobody);
        if when_full == WhenFull::Refuse && is_free && state.is_full(idle) {
            return Err((NotQueued::Full, job));
        }
        if let Some(jobs) = state.queues.get_mut(queue) {
            jobs.waiting.push_back((number, job));
            return Ok(number);
        }
        let idle = state.spare(idle);
        // Cached watches must not stay because of a job that hangs.
        let keeps_one_idle = idle == 1 && self.watches.has_cached();
        if (idle == 0 || keeps_one_idle) && state.workers < MAX_WORKERS {
            let worker = thread::Builder::new().name("lockspace".into()).stack_size(STACK_SIZE);
            match worker.spawn(move || self.work()) {
                Ok(_) => state.workers += 1,
                Err(error) if idle == 0 => return Err((NotQueued::NoThread(error), job)),
                Err(_) => {}
            }
        }
        let jobs = Jobs { waiting: VecDeque::from([(number, job)]), worker: WorkerOf::Nobody };
        state.queues.insert(queue.clone(), jobs);
        state.waiting.push_back(queue.clone());
        // The worker that is woken needs this mutex, so it is unlocked before the notification.
        drop(state);
        if idle > 0 {
            self.state.notify_one();
        }
        Ok(number)
    }

    fn remove(&self, queue: &CallQueue, number: u64) {
        let job = {
            let mut state = self.state.lock();
            state.queues.get_mut(queue).and_then(|jobs| {
                let at = jobs.waiting.iter().position(|&(other, _)| other == number)?;
                jobs.waiting.remove(at)
            })
        };
        // Dropped after the mutex is unlocked.
        drop(job);
    }

    /// What a worker does from its start to its end.
    fn work(&self) {
        let worker = WorkerOf::Thread(procfs::own_tid());
        let mut state = self.state.lock();
        loop {
            if let Some(queue) = state.waiting.pop_front() {
                if let Some(jobs) = state.queues.get_mut(&queue) {
                    jobs.worker = worker;
                }
                while let Some((_, job)) =
                    state.queues.get_mut(&queue).and_then(|jobs| jobs.waiting.pop_front())
                {
                    drop(state);
                    // A panic ends this job and no other one: the queue must keep its worker.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                    self.watches.drop_cached(IDLE_TIME);
                    state = self.state.lock();
                }
                state.queues.remove(&queue);
                continue;
            }
            let until = Instant::now() + IDLE_TIME;
            self.idle.fetch_add(1, Ordering::SeqCst);
            while state.waiting.is_empty() && Instant::now() < until {
                state = self.state.wait(state, Some(until));
            }
            let other_idle = self.idle.fetch_sub(1, Ordering::SeqCst) - 1;
            if !state.waiting.is_empty() {
                continue;
            }
            let stays = other_idle == 0 && self.watches.is_watching();
            drop(state);
            self.watches.drop_cached(Duration::ZERO);
            state = self.state.lock();
            if !stays && state.waiting.is_empty() {
                state.workers -= 1;
                return;
            }
        }
    }
}

/// When to look again for the answer to a call, and whether to leave.
fn wake_up_at(context: &WaitContext, submitted: Instant) -> Option<Instant> {
    let deadline = context.deadline()?;
    let now = Instant::now();
    match now < deadline {
        true => Some(deadline.max(submitted + LEAST_TIME)),
        false => Some(now + LEAST_TIME),
    }
}

impl fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPool").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::wait::{Cancel, Start, Wait};

    const QUEUE: CallQueue = CallQueue::Device(1);
    const OPTIONS: CallOptions<'_> =
        CallOptions { on_timeout: OnTimeout::RunAnyway, cannot_hang: &|| false };

    fn pool() -> &'static WorkerPool {
        Box::leak(Box::new(WorkerPool::new(Arc::default())))
    }

    fn context(wait: Wait) -> WaitContext {
        let Start::Wait(context) = WaitContext::start(wait) else { panic!("it is no wait") };
        context
    }

    /// Fails if the queue has no worker any more.
    #[track_caller]
    fn expect_a_worker(pool: &'static WorkerPool) {
        let context = context(Wait::within(Duration::from_secs(60)));
        let done = pool.run(&QUEUE, (&context, OPTIONS), || 7, drop, || ());
        assert!(matches!(done, Ok(Ok(7))), "nobody does what is in the queue");
    }

    #[test]
    fn a_panic_ends_one_job_and_no_queue() {
        let pool = pool();
        pool.run_detached(&QUEUE, &|| false, || panic!("in a job that nobody waits for"));
        expect_a_worker(pool);

        let waiting = context(Wait::FOREVER);
        let panics =
            || pool.run(&QUEUE, (&waiting, OPTIONS), || panic!("a job"), drop::<Option<()>>, || ());
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err(), "its caller is told");
        expect_a_worker(pool);

        let (cancel, (left, has_left)) = (Cancel::new(), mpsc::channel());
        let waiting = context(Wait::FOREVER.unless(&cancel));
        let work = move || {
            cancel.cancel();
            has_left.recv()
        };
        let given_back = |_| panic!("as what came too late is given back");
        let leaving = || left.send(()).expect("the job waits for it");
        let done = pool.run(&QUEUE, (&waiting, OPTIONS), work, given_back, leaving);
        assert!(matches!(done, Ok(Err(TimedOut(WaitEnd::Cancelled)))));
        expect_a_worker(pool);
    }
}
