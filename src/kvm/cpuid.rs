//! What CPU the guest sees: all that KVM supports, with a topology of our own: one package, one
//! thread per core, APIC id = vCPU index.
//!
//! Source: Intel SDM vol. 2A CPUID; AMD APM vol. 3 appendix E; KVM `cpuid.rst`.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const FEATURE_ECX_VMX: u32 = 1 << 5;
const FEATURE_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURE_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURE_EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;
const TOPOLOGY_SMT: u32 = 1;
const TOPOLOGY_CORE: u32 = 2;

/// Takes virtualization out of `leaves`: a guest that sees none cannot switch it on.
pub fn hide_virtualization(leaves: &mut CpuId) {
    for entry in leaves.as_mut_slice() {
        match entry.function {
            0x1 => entry.ecx &= !FEATURE_ECX_VMX,
            0x8000_0001 => entry.ecx &= !AMD_ECX_SVM,
            _ => {}
        }
    }
}

/// Leaves for vCPU `vcpu_idx` of `num_vcpus`, made from what KVM supports.
///
/// # Errors
/// More leaves than KVM takes, which a host would need to have invented since.
pub fn for_vcpu(
    supported: &CpuId,
    vcpu_idx: u8,
    num_vcpus: u8,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let apic_id = u32::from(vcpu_idx);
    let num_cores = u32::from(num_vcpus);
    let core_bits = num_cores.next_power_of_two().trailing_zeros();
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .copied()
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .collect();
    for entry in &mut entries {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | num_cores << 16 | apic_id << 24;
                entry.ecx |= FEATURE_ECX_TSC_DEADLINE | FEATURE_ECX_HYPERVISOR;
                entry.edx &= !FEATURE_EDX_HTT;
                if num_cores > 1 {
                    entry.edx |= FEATURE_EDX_HTT;
                }
            }
            // Deterministic caches: the last level is everybody's, the others a core's own.
            0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 0x7;
                let sharing = if level >= 3 { num_cores - 1 } else { 0 };
                let max_cores = if entry.function == 0x4 {
                    (1 << core_bits) - 1
                } else {
                    0
                };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | max_cores << 26;
            }
            0x8000_0001 => {
                entry.ecx &= !AMD_ECX_CMP_LEGACY;
                if num_cores > 1 && is_amd(supported) {
                    entry.ecx |= AMD_ECX_CMP_LEGACY;
                }
            }
            0x8000_0008 => {
                entry.ecx = entry.ecx & !0xf0ff | (num_cores - 1) | core_bits << 12;
            }
            0x8000_001e => {
                entry.eax = apic_id;
                entry.ebx = apic_id; // core id, one thread per core
                entry.ecx = 0; // node 0 of 1
            }
            _ => {}
        }
    }
    let levels = [
        (0, 0, 1, TOPOLOGY_SMT),
        (1, core_bits, num_cores, TOPOLOGY_CORE),
        (2, 0, 0, 0),
    ];
    let max_leaf = entries
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    if max_leaf >= 0xb {
        entries.extend(levels.map(|(index, shift, count, kind)| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | kind << 8,
            edx: apic_id,
            ..Default::default()
        }));
    }
    CpuId::from_entries(&entries)
}

fn is_amd(cpuid: &CpuId) -> bool {
    const AUTH: u32 = u32::from_le_bytes(*b"Auth");
    const HYGO: u32 = u32::from_le_bytes(*b"Hygo");
    cpuid
        .as_slice()
        .iter()
        .any(|entry| entry.function == 0 && matches!(entry.ebx, AUTH | HYGO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0x10, u32::from_le_bytes(*b"Auth"), 0, 0),
            leaf(1, 0, 0xff10_0800, 0, 0),
            leaf(0xb, 1, 2, 3, 4),
            leaf(0x8000_0008, 0x3030, 0, 0x703f, 0),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    #[test]
    fn topology_leaves_agree_on_id_and_count() {
        let cpuid = for_vcpu(&host(), 2, 3).unwrap();

        assert_eq!(leaf(&cpuid, 1, 0).ebx, 0x0203_0800);
        assert_eq!(leaf(&cpuid, 0xb, 1).ebx, 3);
        assert_eq!(leaf(&cpuid, 0xb, 1).eax, 2);
        assert_eq!(leaf(&cpuid, 0xb, 0).edx, 2);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 0x2002);
    }

    #[test]
    fn single_vcpu_has_no_siblings() {
        let cpuid = for_vcpu(&host(), 0, 1).unwrap();

        assert_eq!(leaf(&cpuid, 1, 0).edx & FEATURE_EDX_HTT, 0);
        assert_eq!(leaf(&cpuid, 0xb, 1).eax, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn hidden_virtualization_is_that_of_both_vendors() {
        let mut cpuid = host();
        cpuid.as_mut_slice()[1].ecx = FEATURE_ECX_VMX | 1;
        cpuid.as_mut_slice()[3].function = 0x8000_0001;

        hide_virtualization(&mut cpuid);

        assert_eq!(leaf(&cpuid, 1, 0).ecx, 1);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx, 0x703f & !AMD_ECX_SVM);
    }

    #[test]
    fn timer_and_hypervisor_bits_are_set() {
        let ecx = leaf(&for_vcpu(&host(), 0, 1).unwrap(), 1, 0).ecx;

        assert_ne!(ecx & FEATURE_ECX_TSC_DEADLINE, 0);
        assert_ne!(ecx & FEATURE_ECX_HYPERVISOR, 0);
    }
}
