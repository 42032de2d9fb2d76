/**
 * The VMCB: offsets of the control area and of the save area (AMD APM volume 2, appendix B). The VMSA of SEV-ES has the save
 * area's layout at offset 0 of its own page. Intercept bits are numbered word · 32 + bit, as Linux numbers them.
 */

/** Control area, from the start of the page. */
export const VMCB = {
  INTERCEPT_CR: 0x000,
  INTERCEPT_DR: 0x004,
  INTERCEPT_EXCEPTION: 0x008,
  INTERCEPT_WORD3: 0x00c,
  INTERCEPT_WORD4: 0x010,
  INTERCEPT_WORD5: 0x014,
  IOPM_BASE_PA: 0x040,
  MSRPM_BASE_PA: 0x048,
  TSC_OFFSET: 0x050,
  ASID: 0x058,
  TLB_CONTROL: 0x05c,
  INT_CTL: 0x060,
  INT_VECTOR: 0x064,
  INT_STATE: 0x068,
  EXITCODE: 0x070,
  EXITINFO1: 0x078,
  EXITINFO2: 0x080,
  EXITINTINFO: 0x088,
  NESTED_CTL: 0x090,
  GHCB_GPA: 0x0a0,
  EVENTINJ: 0x0a8,
  NCR3: 0x0b0,
  VIRT_EXT: 0x0b8,
  CLEAN: 0x0c0,
  NEXT_RIP: 0x0c8,
  BYTES_FETCHED: 0x0d0,
  GUEST_BYTES: 0x0d1,
  VMSA_PA: 0x108,
  SAVE_AREA: 0x400,
} as const;

/** Save area, relative to its start (add `VMCB.SAVE_AREA` for a plain guest). A segment is selector u16, attrib u16, limit u32, base u64. */
export const SAVE = {
  ES: 0x000,
  CS: 0x010,
  SS: 0x020,
  DS: 0x030,
  FS: 0x040,
  GS: 0x050,
  GDTR: 0x060,
  LDTR: 0x070,
  IDTR: 0x080,
  TR: 0x090,
  VMPL: 0x0ca,
  CPL: 0x0cb,
  EFER: 0x0d0,
  XSS: 0x140,
  CR4: 0x148,
  CR3: 0x150,
  CR0: 0x158,
  DR7: 0x160,
  DR6: 0x168,
  RFLAGS: 0x170,
  RIP: 0x178,
  RSP: 0x1d8,
  RAX: 0x1f8,
  STAR: 0x200,
  LSTAR: 0x208,
  CSTAR: 0x210,
  SFMASK: 0x218,
  KERNEL_GS_BASE: 0x220,
  SYSENTER_CS: 0x228,
  SYSENTER_ESP: 0x230,
  SYSENTER_EIP: 0x238,
  CR2: 0x240,
  G_PAT: 0x268,
  DBGCTL: 0x270,
  SIZE: 0x2e0,
} as const;

/** Offsets inside a segment record of the save area. */
export const SEGMENT = { SELECTOR: 0, ATTRIB: 2, LIMIT: 4, BASE: 8 } as const;

/** Intercepts of words 3 to 5. */
export const INTERCEPT = {
  INTR: 96,
  NMI: 97,
  SMI: 98,
  INIT: 99,
  VINTR: 100,
  CR0_SELECTIVE: 101,
  RDTSC: 110,
  RDPMC: 111,
  PUSHF: 112,
  POPF: 113,
  CPUID: 114,
  RSM: 115,
  IRET: 116,
  INTN: 117,
  INVD: 118,
  PAUSE: 119,
  HLT: 120,
  INVLPG: 121,
  INVLPGA: 122,
  IOIO: 123,
  MSR: 124,
  TASK_SWITCH: 125,
  SHUTDOWN: 127,
  VMRUN: 128,
  VMMCALL: 129,
  VMLOAD: 130,
  VMSAVE: 131,
  STGI: 132,
  CLGI: 133,
  SKINIT: 134,
  RDTSCP: 135,
  ICEBP: 136,
  WBINVD: 137,
  MONITOR: 138,
  MWAIT: 139,
  XSETBV: 141,
  RDPRU: 142,
  EFER_WRITE_TRAP: 143,
  /** CR1 to CR15 follow. */
  CR0_WRITE_TRAP: 144,
} as const;

/** #VMEXIT codes (APM volume 2, appendix C). */
export const VMEXIT = {
  READ_CR0: 0x000,
  WRITE_CR0: 0x010,
  READ_DR0: 0x020,
  WRITE_DR0: 0x030,
  EXCEPTION0: 0x040,
  INTR: 0x060,
  NMI: 0x061,
  SMI: 0x062,
  INIT: 0x063,
  VINTR: 0x064,
  CR0_SELECTIVE: 0x065,
  RDTSC: 0x06e,
  RDPMC: 0x06f,
  PUSHF: 0x070,
  POPF: 0x071,
  CPUID: 0x072,
  RSM: 0x073,
  IRET: 0x074,
  SWINT: 0x075,
  INVD: 0x076,
  PAUSE: 0x077,
  HLT: 0x078,
  INVLPG: 0x079,
  INVLPGA: 0x07a,
  IOIO: 0x07b,
  MSR: 0x07c,
  TASK_SWITCH: 0x07d,
  SHUTDOWN: 0x07f,
  VMRUN: 0x080,
  VMMCALL: 0x081,
  VMLOAD: 0x082,
  VMSAVE: 0x083,
  STGI: 0x084,
  CLGI: 0x085,
  SKINIT: 0x086,
  RDTSCP: 0x087,
  ICEBP: 0x088,
  WBINVD: 0x089,
  MONITOR: 0x08a,
  MWAIT: 0x08b,
  XSETBV: 0x08d,
  RDPRU: 0x08e,
  EFER_WRITE_TRAP: 0x08f,
  CR0_WRITE_TRAP: 0x090,
  NPF: 0x400,
  AVIC_INCOMPLETE_IPI: 0x401,
  VMGEXIT: 0x403,
  INVALID: -1,
  BUSY: -2,
  /** In the range that is reserved for host software: this core cannot go on, and says why in the trace. */
  NOT_IMPLEMENTED: 0xf00000ff | 0,
} as const;

/** EXITINFO1 of a nested page fault: bits of the low word, and of the high word as they lie there (bit − 32). */
export const NPF = {
  PRESENT: 1 << 0,
  WRITE: 1 << 1,
  USER: 1 << 2,
  RESERVED: 1 << 3,
  FETCH: 1 << 4,
  RMP: 1 << 31,
  HIGH_GUEST_FINAL: 1 << 0,
  HIGH_GUEST_PAGE: 1 << 1,
  HIGH_ENC: 1 << 2,
  HIGH_SIZEM: 1 << 3,
  HIGH_VMPL: 1 << 4,
} as const;

/** EXITINFO1 of IOIO. Bits 31:16 are the port. */
export const IOIO = {
  IN: 1 << 0,
  STRING: 1 << 2,
  REP: 1 << 3,
  SIZE8: 1 << 4,
  SIZE16: 1 << 5,
  SIZE32: 1 << 6,
  ADDRESS16: 1 << 7,
  ADDRESS32: 1 << 8,
  ADDRESS64: 1 << 9,
} as const;

/** EVENTINJ and EXITINTINFO. */
export const EVENT = {
  TYPE_INTR: 0 << 8,
  TYPE_NMI: 2 << 8,
  TYPE_EXCEPTION: 3 << 8,
  TYPE_SOFTWARE: 4 << 8,
  ERROR_CODE_VALID: 1 << 11,
  VALID: 1 << 31,
} as const;

/** Clean bits (APM volume 2, 15.15): 1 says that the processor's copy of these fields is still good. */
export const CLEAN = {
  /** Intercepts, TSC offset, PAUSE filter. */
  INTERCEPTS: 1 << 0,
  /** IOPM_BASE_PA and MSRPM_BASE_PA. */
  PERMISSIONS: 1 << 1,
  ASID: 1 << 2,
  /** V_TPR, V_IRQ and the other virtual-interrupt fields of INT_CTL and INT_VECTOR. */
  INTERRUPT: 1 << 3,
  /** NP_ENABLE, NCR3, G_PAT. */
  NESTED: 1 << 4,
  /** CR0, CR3, CR4, EFER. */
  CR: 1 << 5,
  /** DR6, DR7. */
  DR: 1 << 6,
  /** GDTR, IDTR. */
  TABLES: 1 << 7,
  /** CS DS SS ES, CPL. */
  SEGMENTS: 1 << 8,
  CR2: 1 << 9,
  /** DBGCTL and the branch records. */
  LBR: 1 << 10,
  AVIC: 1 << 11,
  CET: 1 << 12,
} as const;

export const NESTED_CTL_NP_ENABLE = 1;
export const TLB_CONTROL = { NOTHING: 0, FLUSH_ALL: 1, FLUSH_ASID: 3, FLUSH_ASID_NON_GLOBAL: 7 } as const;
