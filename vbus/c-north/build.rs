//! Compiles `ring.c` and `vbus_ring.h` of the guest's modules as they are, with `c/kernel.h` in the
//! place of the kernel's headers.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

/// Headers of the kernel that the sources ask for.
const KERNEL_HEADERS: &[&str] = &[
    "asm/barrier.h",
    "asm/byteorder.h",
    "asm/cmpxchg.h",
    "linux/build_bug.h",
    "linux/cache.h",
    "linux/completion.h",
    "linux/device.h",
    "linux/errno.h",
    "linux/gfp.h",
    "linux/io.h",
    "linux/list.h",
    "linux/log2.h",
    "linux/mm.h",
    "linux/module.h",
    "linux/mutex.h",
    "linux/rcupdate.h",
    "linux/rwsem.h",
    "linux/slab.h",
    "linux/types.h",
    "linux/xarray.h",
];

fn main() -> Result<(), Box<dyn Error>> {
    let headers = Path::new(&env::var("OUT_DIR")?).join("include");
    for name in KERNEL_HEADERS {
        let path = headers.join(name);
        fs::create_dir_all(path.parent().ok_or("a file is in a directory")?)?;
        fs::write(path, "#include <kernel.h>\n")?;
    }
    cc::Build::new()
        .files(["c/north.c", "../../guest-kernel/vbus/ring.c"])
        .include(headers)
        .include("c")
        .include("../../guest-kernel/include")
        // What the kernel is compiled with.
        .std("gnu11")
        .opt_level(2)
        .flag("-fno-strict-aliasing")
        .flag("-fwrapv")
        .extra_warnings(false)
        .warnings_into_errors(true)
        .compile("north");
    for path in ["c", "../../guest-kernel/include", "../../guest-kernel/vbus"] {
        println!("cargo::rerun-if-changed={path}");
    }
    Ok(())
}
