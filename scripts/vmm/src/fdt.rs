// SPDX-License-Identifier: GPL-2.0-only
//! The device tree that the guest finds its machine by.

use std::ops::Range;

use vm_fdt::{Error, FdtWriter};

use crate::layout::*;

const PHANDLE_GIC: u32 = 1;

const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Secure physical, physical, virtual and hypervisor timer.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// Returns the tree of a machine. The initramfs is where its addresses say.
pub fn tree(config: Config, command_line: &str, initrd: Range<u64>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;

    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", command_line)?;
    fdt.property_string("stdout-path", &format!("/serial@{SERIAL:x}"))?;
    fdt.property_u64("linux,initrd-start", initrd.start)?;
    fdt.property_u64("linux,initrd-end", initrd.end)?;
    fdt.end_node(chosen)?;

    let memory = fdt.begin_node(&format!("memory@{RAM:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM, config.ram])?;
    fdt.end_node(memory)?;

    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for cpu in 0..config.vcpus as u32 {
        let node = fdt.begin_node(&format!("cpu@{cpu:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u32("reg", cpu)?;
        fdt.end_node(node)?;
    }
    fdt.end_node(cpus)?;

    let psci = fdt.begin_node("psci")?;
    fdt.property_string("compatible", "arm,psci-1.0")?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;

    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_null("always-on")?;
    let interrupts: Vec<u32> = TIMER_PPIS.iter().flat_map(|ppi| [PPI, *ppi, LEVEL_HIGH]).collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.end_node(timer)?;

    let gic = fdt.begin_node(&format!("interrupt-controller@{GIC_DISTRIBUTOR:x}"))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    let redistributors = GIC_REDISTRIBUTOR_BYTES * config.vcpus as u64;
    let registers = [GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_BYTES, GIC_REDISTRIBUTORS, redistributors];
    fdt.property_array_u64("reg", &registers)?;
    fdt.property_phandle(PHANDLE_GIC)?;
    fdt.end_node(gic)?;

    let serial = fdt.begin_node(&format!("serial@{SERIAL:x}"))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[SERIAL, SERIAL_BYTES])?;
    fdt.property_u32("clock-frequency", 1_843_200)?;
    fdt.property_array_u32("interrupts", &[SPI, SERIAL_SPI, EDGE_RISING])?;
    fdt.end_node(serial)?;

    fdt.end_node(root)?;
    fdt.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_has_what_it_was_given() {
        for vcpus in 1..=MAX_VCPUS {
            let config = Config { ram: 64 << 20, vcpus };
            let bytes = tree(config, "console=ttyS0 words=7", RAM..RAM + 5).unwrap();
            assert_eq!(bytes[..4], 0xd00d_feed_u32.to_be_bytes());
            let has = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
            assert!(has(b"words=7\0"));
            assert!(has(format!("cpu@{}\0", vcpus - 1).as_bytes()));
            assert!(!has(format!("cpu@{vcpus}\0").as_bytes()));
        }
    }
}
