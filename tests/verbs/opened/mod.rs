//! The caller's own open file, locked through its descriptor.

mod locked;
mod meetings;
mod other_locks;
mod refused;

use std::os::fd::AsFd;

use lockspace::{Mode, Request, Target};

fn opened<'a>(mode: Mode, name: &'a str, file: &'a impl AsFd) -> Request<'a> {
    Request::new(mode, Target::opened(name, file))
}

fn exclusive<'a>(name: &'a str, file: &'a impl AsFd) -> Request<'a> {
    opened(Mode::Exclusive, name, file)
}

fn shared<'a>(name: &'a str, file: &'a impl AsFd) -> Request<'a> {
    opened(Mode::Shared, name, file)
}
