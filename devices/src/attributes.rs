//! Attributes of devices as pairs of functions.

use std::sync::Arc;

use rustix::io::Errno;
use vbus::attribute::Attribute;

/// What [`vbus::device::Device::attributes`] returns.
pub(crate) type Attributes = Vec<(&'static str, Arc<dyn Attribute>)>;

type Read = dyn Fn() -> Result<String, Errno> + Send + Sync;
type Write = dyn Fn(&str) -> Result<(), Errno> + Send + Sync;

struct Functions {
    read: Box<Read>,
    write: Option<Box<Write>>,
}

impl Attribute for Functions {
    fn read(&self) -> Result<String, Errno> {
        (self.read)()
    }

    fn write(&self, value: &str) -> Result<(), Errno> {
        match &self.write {
            Some(write) => write(value),
            None => Err(Errno::ACCESS),
        }
    }

    fn is_writable(&self) -> bool {
        self.write.is_some()
    }
}

/// An attribute that is only read.
pub(crate) fn read_only(
    read: impl Fn() -> Result<String, Errno> + Send + Sync + 'static,
) -> Arc<dyn Attribute> {
    Arc::new(Functions {
        read: Box::new(read),
        write: None,
    })
}

/// An attribute that is read and written.
pub(crate) fn read_write(
    read: impl Fn() -> Result<String, Errno> + Send + Sync + 'static,
    write: impl Fn(&str) -> Result<(), Errno> + Send + Sync + 'static,
) -> Arc<dyn Attribute> {
    Arc::new(Functions {
        read: Box::new(read),
        write: Some(Box::new(write)),
    })
}

/// A decimal number from `least` to `most`; anything else is `EINVAL`.
pub(crate) fn number(text: &str, least: u32, most: u32) -> Result<u32, Errno> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(value) if is_digits && (least..=most).contains(&value) => Ok(value),
        _ => Err(Errno::INVAL),
    }
}
