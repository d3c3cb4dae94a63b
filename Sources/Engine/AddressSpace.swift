// SPDX-License-Identifier: Apache-2.0
// The address space: where an engine looks linear addresses up. A processor has one answer, its control registers. A machine
// whose guest asks for its page tables by hypercall, as lguest's did, has others, which it keeps itself; the guest's code
// then runs at a level that may not load control registers.

/// Where linear addresses are looked up. The rights of an entry, accessed and dirty bits and page-fault error codes are those
/// of the format in every case (SDM volume 3, 4.3 and 4.4), with CR0.WP, CR4 and EFER.NXE as they are.
public enum AddressSpace: Sendable, Equatable {
  /// By CR0.PG, CR3, CR4.PAE and EFER.LMA.
  case controlRegisters
  /// Nowhere: a linear address is the guest-physical one, of 32 bits, for code of levels 0 to 2; level 3 has no pages.
  case identity
  /// In page tables of 32-bit paging whose directory is at this guest-physical address, a multiple of 4096.
  case tables(root: UInt32)
  /// In page tables of PAE paging whose four top entries are at this guest-physical address, a multiple of 32. They are
  /// read when the address space is set; one with reserved bits, or outside RAM, is not present.
  case extendedTables(root: UInt32)
}
