/** The local APIC's registers and bits (AMD APM volume 2, chapter 16; Linux asm/apicdef.h, asm/msr-index.h). No behaviour. */

/** Offsets in the xAPIC page; in x2APIC mode the MSR is 0x800 + offset / 16. */
export const APIC = {
  ID: 0x20,
  VERSION: 0x30,
  TPR: 0x80,
  ARBITRATION: 0x90,
  PPR: 0xa0,
  EOI: 0xb0,
  LDR: 0xd0,
  DFR: 0xe0,
  SPURIOUS: 0xf0,
  /** 256 bits each, 32 in the first word of every 16 bytes. */
  ISR: 0x100,
  TMR: 0x180,
  IRR: 0x200,
  ESR: 0x280,
  LVT_CMCI: 0x2f0,
  ICR: 0x300,
  ICR2: 0x310,
  LVT_TIMER: 0x320,
  LVT_THERMAL: 0x330,
  LVT_PERFORMANCE: 0x340,
  LVT_LINT0: 0x350,
  LVT_LINT1: 0x360,
  LVT_ERROR: 0x370,
  INITIAL_COUNT: 0x380,
  CURRENT_COUNT: 0x390,
  DIVIDE: 0x3e0,
  SELF_IPI: 0x3f0,
} as const;

/** Bits 10:8 of the ICR, of LVT entries and of an MSI's data. */
export const DELIVERY = {
  FIXED: 0x000,
  LOWEST_PRIORITY: 0x100,
  SMI: 0x200,
  REMOTE_READ: 0x300,
  NMI: 0x400,
  INIT: 0x500,
  STARTUP: 0x600,
  EXTINT: 0x700,
} as const;

/** The ICR's other fields. */
export const ICR = {
  VECTOR: 0xff,
  DELIVERY: 0x700,
  LOGICAL: 1 << 11,
  BUSY: 1 << 12,
  ASSERT: 1 << 14,
  LEVEL: 1 << 15,
  SHORTHAND: 3 << 18,
} as const;
export const SHORTHAND = { NONE: 0, SELF: 1 << 18, ALL: 2 << 18, OTHERS: 3 << 18 } as const;

export const LVT = {
  VECTOR: 0xff,
  DELIVERY: 0x700,
  SEND_PENDING: 1 << 12,
  POLARITY: 1 << 13,
  REMOTE_IRR: 1 << 14,
  LEVEL: 1 << 15,
  MASKED: 1 << 16,
  TIMER_PERIODIC: 1 << 17,
  TIMER_TSC_DEADLINE: 2 << 17,
} as const;

export const SPURIOUS = { ENABLED: 1 << 8, SUPPRESS_EOI_BROADCAST: 1 << 12 } as const;
/** Bit of the version register that goes with SPURIOUS.SUPPRESS_EOI_BROADCAST. */
export const VERSION_DIRECTED_EOI = 1 << 24;
export const DFR_FLAT = 0xffffffff | 0;
export const DFR_CLUSTER = 0x0fffffff;

/** IA32_APIC_BASE (MSR 0x1b). */
export const APIC_BASE = {
  BSP: 1n << 8n,
  X2APIC: 1n << 10n,
  ENABLE: 1n << 11n,
  ADDRESS: 0xffffff000n,
  DEFAULT_ADDRESS: 0xfee00000n,
} as const;
export const APIC_PAGE_BYTES = 4096;

export const MSR_TSC_DEADLINE = 0x6e0;
/** MSRs of x2APIC mode: 0x800 to 0x8ff. */
export const X2APIC_MSR = 0x800;
export const X2APIC_MSR_END = 0x900;
