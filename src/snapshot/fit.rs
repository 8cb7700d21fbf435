//! Reads what fits its type straight into it, and keeps the rest as a tree: one odd entry must not
//! make a whole document unreadable, and what is not understood must not be lost.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use smallvec::SmallVec;

/// A value of a type, or whatever else was there in its place.
#[derive(Clone, Debug)]
pub(crate) enum Fitted<T> {
    Fits(T),
    Odd(Value),
}

/// A type that tells what fits it. It must serialize as what it was read from.
pub(crate) trait Fit: Sized {
    fn boolean(_: bool) -> Option<Self> {
        None
    }

    fn number(_: u64) -> Option<Self> {
        None
    }

    fn negative(_: i64) -> Option<Self> {
        None
    }

    fn text(_: &str) -> Option<Self> {
        None
    }

    fn null() -> Option<Self> {
        None
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Fitted<Self>, A::Error> {
        Value::deserialize(SeqAccessDeserializer::new(list)).map(Fitted::Odd)
    }

    fn map<'de, A: MapAccess<'de>>(map: A) -> Result<Fitted<Self>, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(map)).map(Fitted::Odd)
    }
}

impl<'de, T: Fit> Deserialize<'de> for Fitted<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FitVisitor(PhantomData))
    }
}

impl<T: Serialize> Serialize for Fitted<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fits(value) => value.serialize(serializer),
            Self::Odd(value) => value.serialize(serializer),
        }
    }
}

struct FitVisitor<T>(PhantomData<T>);

fn fitted<T>(fits: Option<T>, odd: impl FnOnce() -> Value) -> Fitted<T> {
    fits.map_or_else(|| Fitted::Odd(odd()), Fitted::Fits)
}

impl<'de, T: Fit> Visitor<'de> for FitVisitor<T> {
    type Value = Fitted<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(fitted(T::boolean(value), || value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(fitted(T::number(value), || value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        let fits = u64::try_from(value).map_or_else(|_| T::negative(value), T::number);
        Ok(fitted(fits, || value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Fitted::Odd(value.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(fitted(T::text(value), || value.into()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(fitted(T::null(), || Value::Null))
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<Self::Value, D::Error> {
        value.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::map(map)
    }
}

impl Fit for bool {
    fn boolean(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl Fit for u64 {
    fn number(value: u64) -> Option<Self> {
        Some(value)
    }
}

impl Fit for Option<u64> {
    fn number(value: u64) -> Option<Self> {
        Some(Some(value))
    }

    fn null() -> Option<Self> {
        Some(None)
    }
}

impl Fit for i64 {
    fn number(value: u64) -> Option<Self> {
        value.try_into().ok()
    }

    fn negative(value: i64) -> Option<Self> {
        Some(value)
    }
}

impl Fit for String {
    fn text(value: &str) -> Option<Self> {
        Some(value.to_owned())
    }
}

impl<T: Fit> Fit for Vec<Fitted<T>> {
    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Fitted<Self>, A::Error> {
        let mut all = Self::new();
        while let Some(one) = list.next_element()? {
            all.push(one);
        }
        Ok(Fitted::Fits(all))
    }
}

/// A list of which every element fits, hardly ever of more than two.
pub(crate) fn list_of<'de, T: Fit + Into<Value>, A: SeqAccess<'de>>(
    mut list: A,
) -> Result<Fitted<SmallVec<[T; 2]>>, A::Error> {
    let mut all = SmallVec::<[T; 2]>::new();
    while let Some(one) = list.next_element()? {
        match one {
            Fitted::Fits(one) => all.push(one),
            Fitted::Odd(odd) => {
                let mut tree: Vec<Value> = all.into_iter().map(Into::into).collect();
                tree.push(odd);
                while let Some(one) = list.next_element()? {
                    tree.push(one);
                }
                return Ok(Fitted::Odd(tree.into()));
            }
        }
    }
    Ok(Fitted::Fits(all))
}

/// A key of an object.
pub(crate) enum Key {
    Known(&'static str),
    Other(String),
}

/// Reads a key that may be one of these.
#[derive(Clone, Copy)]
pub(crate) struct Keys(pub(crate) &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Keys {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Keys {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Key, E> {
        let known = self.0.iter().find(|known| **known == key);
        Ok(known.map_or_else(|| Key::Other(key.to_owned()), |known| Key::Known(known)))
    }
}

/// The whole object, where a part of it is already read.
pub(crate) fn rest_of<'de, A: MapAccess<'de>>(
    mut read: Map<String, Value>,
    mut map: A,
) -> Result<Value, A::Error> {
    while let Some((key, value)) = map.next_entry()? {
        read.insert(key, value);
    }
    Ok(read.into())
}

/// Fits objects that have these keys, perhaps those, and no others.
macro_rules! fit_map {
    ($type:ident { $($field:ident = $key:literal),* ; $($perhaps:ident),* }) => {
        impl $crate::snapshot::fit::Fit for $type {
            fn map<'de, A: serde::de::MapAccess<'de>>(
                mut map: A,
            ) -> Result<$crate::snapshot::fit::Fitted<Self>, A::Error> {
                use $crate::snapshot::fit::{Fitted, Key, Keys, rest_of};

                const KEYS: Keys = Keys(&[$($key,)* $(stringify!($perhaps),)*]);
                $(let mut $field = None;)*
                $(let mut $perhaps = None;)*
                // What makes it odd, if anything does.
                let odd = loop {
                    match map.next_key_seed(KEYS)? {
                        $(Some(Key::Known($key)) => match map.next_value()? {
                            Fitted::Fits(value) => $field = Some(value),
                            Fitted::Odd(odd) => break Some(($key.to_owned(), odd)),
                        },)*
                        $(Some(Key::Known(stringify!($perhaps))) => match map.next_value()? {
                            Fitted::Fits(value) => $perhaps = Some(value),
                            Fitted::Odd(odd) => {
                                break Some((stringify!($perhaps).to_owned(), odd));
                            }
                        },)*
                        Some(Key::Known(key)) => break Some((key.to_owned(), map.next_value()?)),
                        Some(Key::Other(key)) => break Some((key, map.next_value()?)),
                        None => break None,
                    }
                };
                match (odd, $($field,)*) {
                    (None, $(Some($field),)*) => Ok(Fitted::Fits(Self { $($field,)* $($perhaps,)* })),
                    (odd, $($field,)*) => {
                        let mut read = serde_json::Map::new();
                        $(if let Some(value) = $field {
                            read.insert($key.to_owned(), serde_json::to_value(value).unwrap_or_default());
                        })*
                        $(if let Some(value) = $perhaps {
                            read.insert(stringify!($perhaps).to_owned(), serde_json::to_value(value).unwrap_or_default());
                        })*
                        match odd {
                            Some((key, value)) => {
                                read.insert(key, value);
                                rest_of(read, map).map(Fitted::Odd)
                            }
                            None => Ok(Fitted::Odd(read.into())),
                        }
                    }
                }
            }
        }
    };
}

pub(crate) use fit_map;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::document::{Document, ResourceState};

    const GOOD: &str = r#"{"name":"a","path":"/a","fd":5,"lockHeld":true,"flags":0,"owners":[1,2],
        "lockspace":{"range":[0,null],"device":1,"inode":2,"origin":"opened","hex":"61"}}"#;

    fn read(text: &str) -> (Fitted<ResourceState>, Value) {
        (serde_json::from_str(text).unwrap(), serde_json::from_str(text).unwrap())
    }

    #[test]
    fn what_fits_is_read_and_what_does_not_is_kept() {
        let (entry, tree) = read(GOOD);
        assert!(matches!(entry, Fitted::Fits(_)));
        assert_eq!(serde_json::to_value(entry).unwrap(), tree);
        // Each value in turn replaced or left out, at either depth, or one added.
        let odd = ["null", "-1", "1.5", "\"x\"", "[]", "[0,1,2]", "[null,1]", "[1,{}]", "{}", "7"];
        let mut odd_ones = 0;
        let mut check = |tree: Value| {
            let (entry, again) = read(&tree.to_string());
            odd_ones += usize::from(matches!(entry, Fitted::Odd(_)));
            assert_eq!(serde_json::to_value(&entry).unwrap(), again);
            // From a tree, too.
            let entry: Fitted<ResourceState> = serde_json::from_value(tree.clone()).unwrap();
            assert_eq!(serde_json::to_value(&entry).unwrap(), tree);
        };
        for parent in ["", "/lockspace"] {
            let object = tree.pointer(parent).unwrap().as_object().unwrap();
            for key in object.keys().map(String::as_str).chain(["later"]) {
                for odd in odd {
                    let mut tree = tree.clone();
                    tree.pointer_mut(parent).unwrap()[key] = serde_json::from_str(odd).unwrap();
                    check(tree);
                }
                let mut tree = tree.clone();
                tree.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
                check(tree);
            }
        }
        assert!(odd_ones > 100, "{odd_ones}");
    }

    #[test]
    fn the_last_of_several_counts() {
        for (key, first, last) in [("fd", "5", "6"), ("fd", "null", "6"), ("fd", "6", "null")] {
            let text = GOOD.replace(r#""fd":5"#, &format!(r#""{key}":{first},"{key}":{last}"#));
            let (entry, tree) = read(&text);
            assert_eq!(serde_json::to_value(entry).unwrap(), tree, "{text}");
        }
        for (first, last) in [("[]", "[1]"), ("[1]", "null"), ("null", "[1]"), ("1", "2")] {
            let text = format!(r#"{{"resources":{first},"a":1,"resources":{last}}}"#);
            let document: Document = serde_json::from_str(&text).unwrap();
            let tree: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_value(&document).unwrap(), tree, "{text}");
            assert_eq!(document.resources().is_some(), tree["resources"].is_array(), "{text}");
        }
    }
}
