//! Contenders in processes of their own, so that each may have as many descriptors as one may.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::works::{Contender, Large, Place};

struct Remote {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It ends, and cleans up, when there are no more orders.
        self.orders = None;
        let _ = self.child.wait();
    }
}

/// A contender that does the work in another process.
pub(crate) fn contender(large: Large, who: &str, place: &Place, size: usize) -> Contender {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["--large", large.title(), "--who", who, "--count", &size.to_string(), "--root"]);
    command.arg(&place.root).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("a child");
    let (orders, answers) = (child.stdin.take(), child.stdout.take().expect("piped"));
    let mut remote = Remote { child, orders, answers: BufReader::new(answers) };
    let run = move |times: u64| {
        let orders = remote.orders.as_mut().expect("until it is dropped");
        writeln!(orders, "{times}").and_then(|()| orders.flush()).expect("an order");
        let mut answer = String::new();
        remote.answers.read_line(&mut answer).expect("an answer");
        Duration::from_nanos(answer.trim().parse().expect("a child that lives"))
    };
    Contender { name: format!("{who} at {size}"), run: Box::new(run) }
}

/// In the child.
pub(crate) fn serve(mut contender: Contender) {
    for order in std::io::stdin().lines() {
        let times = order.expect("an order").parse().expect("a number");
        println!("{}", (contender.run)(times).as_nanos());
    }
}
