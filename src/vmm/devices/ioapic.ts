/**
 * An 82093AA IOAPIC of 24 pins whose local APICs are the kernel's (QEMU hw/intc/ioapic.c with kernel-irqchip=split): each pin's entry is kept
 * as an MSI route of the kernel, a pin that asserts is KVM_IRQ_LINE on its GSI, and the kernel tells of the EOIs of level-triggered vectors.
 *
 * Left out: interrupt remapping, the brake on interrupt storms, ExtINT entries (there is no PIC).
 */
import type { GsiRoute, KvmVm } from '../../kernel/interface.ts';
import type { MemoryRegionOps } from '../memory/memory-region.ts';

export const IOAPIC_ADDRESS = 0xfec0_0000;
export const IOAPIC_BYTES = 0x1000;
export const IOAPIC_PINS = 24;

const SELECT = 0x00;
const WINDOW = 0x10;
const EOI = 0x40;
const REGISTER = { ID: 0, VERSION: 1, ARBITRATION: 2, ENTRIES: 0x10 } as const;
/** With the EOI register. */
const VERSION = 0x20;

/** The low word of a redirection entry. */
const ENTRY = {
  VECTOR: 0xff,
  DELIVERY: 0x700,
  LOGICAL: 1 << 11,
  PENDING: 1 << 12,
  REMOTE_IRR: 1 << 14,
  LEVEL: 1 << 15,
  MASKED: 1 << 16,
} as const;
const READ_ONLY = ENTRY.REMOTE_IRR | ENTRY.PENDING;
const WRITABLE = 0x1ffff & ~READ_ONLY;
const MSI_ADDRESS = 0xfee0_0000;
const ROUTE_MSI = 2;

export class Ioapic implements MemoryRegionOps {
  readonly maxAccessSize = 4;
  readonly #vm: Pick<KvmVm, 'irqLine' | 'setGsiRouting'>;
  readonly #low = new Int32Array(IOAPIC_PINS).fill(ENTRY.MASKED);
  readonly #high = new Int32Array(IOAPIC_PINS);
  /** Routes as the kernel has them; a masked pin keeps its last one. */
  readonly #routes: GsiRoute[];
  #select = 0;
  #id = 0;
  /** Pins that assert. */
  #requests = 0;

  constructor(vm: Pick<KvmVm, 'irqLine' | 'setGsiRouting'>) {
    this.#vm = vm;
    const nowhere = { addressLo: 0, addressHi: 0, data: 0 };
    this.#routes = Array.from({ length: IOAPIC_PINS }, (_, gsi) => ({
      ...{ gsi, type: ROUTE_MSI, flags: 0 },
      msi: nowhere,
    }));
    this.#commitRoutes();
  }

  read(offset: number): number {
    const register = this.#select;
    if (offset === SELECT) return register;
    if (offset !== WINDOW) return 0;
    if (register === REGISTER.ID || register === REGISTER.ARBITRATION) return this.#id << 24;
    if (register === REGISTER.VERSION) return VERSION | ((IOAPIC_PINS - 1) << 16);
    const pin = (register - REGISTER.ENTRIES) >> 1;
    if (pin < 0 || pin >= IOAPIC_PINS) return 0;
    return ((register & 1) !== 0 ? this.#high[pin]! : this.#low[pin]!) >>> 0;
  }

  write(offset: number, value: number, size: number): void {
    if (offset === SELECT) this.#select = value & 0xff;
    else if (offset === WINDOW && size === 4) this.#writeWindow(value);
    else if (offset === EOI && size === 4) this.endOfInterrupt(value & 0xff);
  }

  /** A device's line. ISA's interrupt 0 is pin 2. */
  setLine(line: number, level: 0 | 1): void {
    const pin = line === 0 ? 2 : line;
    if (pin >= IOAPIC_PINS) return;
    const bit = 1 << pin;
    const entry = this.#low[pin]!;
    if ((entry & ENTRY.LEVEL) !== 0) {
      if (level === 0) this.#requests &= ~bit;
      else {
        this.#requests |= bit;
        if ((entry & ENTRY.REMOTE_IRR) === 0) this.#service();
      }
    } else if (level === 1 && (entry & ENTRY.MASKED) === 0) {
      this.#requests |= bit;
      this.#service();
    }
  }

  /** KVM_EXIT_IOAPIC_EOI: level-triggered pins of the vector may interrupt again, and do if they still assert. */
  endOfInterrupt(vector: number): void {
    for (let pin = 0; pin < IOAPIC_PINS; pin++) {
      const entry = this.#low[pin]!;
      const meant = (entry & ENTRY.VECTOR) === vector && (entry & ENTRY.LEVEL) !== 0;
      if (!meant || (entry & ENTRY.REMOTE_IRR) === 0) continue;
      this.#low[pin] = entry & ~ENTRY.REMOTE_IRR;
      if ((entry & ENTRY.MASKED) === 0 && ((this.#requests >>> pin) & 1) !== 0) this.#service();
    }
  }

  #writeWindow(value: number): void {
    const register = this.#select;
    if (register === REGISTER.ID) this.#id = (value >>> 24) & 0xf;
    const pin = (register - REGISTER.ENTRIES) >> 1;
    if (pin < 0 || pin >= IOAPIC_PINS) return;
    if ((register & 1) !== 0) this.#high[pin] = value;
    else {
      const kept = this.#low[pin]! & READ_ONLY;
      const entry = (value & WRITABLE) | kept;
      this.#low[pin] = (entry & ENTRY.LEVEL) === 0 ? entry & ~ENTRY.REMOTE_IRR : entry;
    }
    this.#updateRoute(pin);
    this.#service();
  }

  #updateRoute(pin: number): void {
    const low = this.#low[pin]!;
    if ((low & ENTRY.MASKED) !== 0) return;
    const logical = (low & ENTRY.LOGICAL) !== 0 ? 4 : 0;
    const destination = (this.#high[pin]! >>> 16) << 4;
    const msi = {
      addressLo: (MSI_ADDRESS | destination | logical) >>> 0,
      addressHi: 0,
      data: low & (ENTRY.VECTOR | ENTRY.DELIVERY | ENTRY.LEVEL),
    };
    this.#routes[pin] = { gsi: pin, type: ROUTE_MSI, flags: 0, msi };
    this.#commitRoutes();
  }

  #commitRoutes(): void {
    this.#vm.setGsiRouting({ routes: this.#routes, flags: 0 });
  }

  /** Sends what asserts, is not masked and, if level-triggered, not being handled. */
  #service(): void {
    for (let pin = 0; pin < IOAPIC_PINS; pin++) {
      const entry = this.#low[pin]!;
      if (((this.#requests >>> pin) & 1) === 0 || (entry & ENTRY.MASKED) !== 0) continue;
      if ((entry & ENTRY.LEVEL) === 0) {
        this.#requests &= ~(1 << pin);
        this.#vm.irqLine({ irq: pin, level: 1 });
        this.#vm.irqLine({ irq: pin, level: 0 });
      } else if ((entry & ENTRY.REMOTE_IRR) === 0) {
        this.#low[pin] = entry | ENTRY.REMOTE_IRR;
        this.#vm.irqLine({ irq: pin, level: 1 });
      }
    }
  }
}
