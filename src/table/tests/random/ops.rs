//! Random deeds.

use proptest::prelude::*;
use proptest::sample::select;

use super::{NAMES, OWNERS};
use crate::table::HoldKind;
use crate::table::tests::{Ask, Carrier, Event, How, NameId, Turn};
use crate::types::Mode;

/// What somebody does; of several who could, the number says which one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Ask(NameId, Ask, Patience),
    /// One of the threads that have a transition does this, if it can.
    Thread(usize, Step),
    /// A call that waits looks at what it was granted, or gives up.
    Call(usize),
    Lease(usize, LeaseOp),
    /// About what an owner keeps.
    Kept(NameId, Event),
    /// About the space, or the file.
    Space(NameId, Event),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    Try,
    Wait,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Succeed(Carrier, Turn),
    Fail,
    Other(Event),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum LeaseOp {
    Release,
    Keep,
    Convert(Mode),
    WaitToUpgrade,
}

fn asks() -> impl Strategy<Value = Ask> {
    let how = prop_oneof![
        12 => Just(How::ByName),
        1 => Just(How::OtherRange),
        2 => (0..2_u64).prop_map(How::Opened),
    ];
    let modes = prop_oneof![3 => Just(Mode::Shared), 2 => Just(Mode::Exclusive)];
    (1..=OWNERS, modes, how).prop_map(|(owner, mode, how)| Ask { owner, mode, how })
}

fn steps() -> impl Strategy<Value = Step> {
    let carriers = select(&[Carrier::Writable, Carrier::ReadOnly, Carrier::Memory][..]);
    let turns = select(&[Turn::Counts, Turn::DoesNotCount][..]);
    prop_oneof![
        6 => (carriers, turns).prop_map(|(carrier, turn)| Step::Succeed(carrier, turn)),
        3 => Just(Step::Fail),
        3 => select(&[Event::Contend, Event::Resume][..]).prop_map(Step::Other),
        1 => select(&[Event::Unresponsive, Event::GiveFileBack][..]).prop_map(Step::Other),
    ]
}

fn lease_ops() -> impl Strategy<Value = LeaseOp> {
    prop_oneof![
        6 => Just(LeaseOp::Release),
        2 => Just(LeaseOp::Keep),
        2 => select(&[Mode::Shared, Mode::Exclusive][..]).prop_map(LeaseOp::Convert),
        2 => Just(LeaseOp::WaitToUpgrade),
    ]
}

fn kept_ops() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1..=OWNERS).prop_map(|owner| Event::Release(owner, HoldKind::Kept)),
        (1..=OWNERS).prop_map(|owner| Event::SetKind(owner, HoldKind::Leased)),
        (1..=OWNERS).prop_map(Event::NoteKept),
        Just(Event::ReleaseNoted),
    ]
}

fn space_ops() -> impl Strategy<Value = Event> {
    let freezing = if cfg!(feature = "snapshot") { 1 } else { 0 };
    prop_oneof![
        1 => Just(Event::Change),
        3 => (0..40_u64).prop_map(Event::Pass),
        freezing => Just(Event::Freeze),
        3 * freezing => Just(Event::Thaw),
    ]
}

pub(super) fn ops() -> impl Strategy<Value = Op> {
    let patience = select(&[Patience::Try, Patience::Wait, Patience::Wait][..]);
    prop_oneof![
        10 => (0..NAMES, asks(), patience).prop_map(|(name, ask, how)| Op::Ask(name, ask, how)),
        8 => (0..NAMES, steps()).prop_map(|(pick, step)| Op::Thread(pick, step)),
        6 => (0..8_usize).prop_map(Op::Call),
        7 => (0..8_usize, lease_ops()).prop_map(|(pick, op)| Op::Lease(pick, op)),
        3 => (0..NAMES, kept_ops()).prop_map(|(name, event)| Op::Kept(name, event)),
        2 => (0..NAMES, space_ops()).prop_map(|(name, event)| Op::Space(name, event)),
    ]
}
