/**
 * A vCPU's local APIC in the kernel (Linux arch/x86/kvm/lapic.c): its register page, priorities, acceptance of interrupts, EOI, the xAPIC
 * page and the x2APIC MSRs. How a message finds its APICs is `apic-map.ts` and `interrupt-controller.ts`; the timer is `timer.ts`.
 *
 * Left out: CMCI (needs KVM_X86_SETUP_MCE), paravirtual EOI, KVM_TPR_ACCESS_REPORTING, SMI, AVIC.
 */
import {
  APIC,
  APIC_BASE,
  APIC_PAGE_BYTES,
  DELIVERY,
  DFR_FLAT,
  ICR,
  LVT,
  SHORTHAND,
  SPURIOUS,
  VERSION_DIRECTED_EOI,
} from '../../../abi/apic.ts';
import type { InterruptController } from './interrupt-controller.ts';
import type { InterruptMessage } from './message.ts';
import { isReadable } from './readable-registers.ts';
import { LapicTimer, type TimerVcpu } from './timer.ts';
import { clearVector, highestVector, setVector, testVector } from './vector-bits.ts';

/** What a local APIC asks of its vCPU; `kick`: something may be to be delivered (KVM_REQ_EVENT). */
export interface LapicVcpu extends TimerVcpu {
  readonly id: number;
  /** IA32_APIC_BASE. */
  readonly apicBase: bigint;
  /** CPUID: x2APIC, TSC deadline. */
  readonly hasX2apic: boolean;
  readonly hasTscDeadline: boolean;
  queueNmi(): void;
}

const VERSION = 0x14;
const LVT_ENTRIES = 6;
const LVT_BASIC = LVT.MASKED | LVT.SEND_PENDING | LVT.VECTOR;
const LVT_LINT = LVT_BASIC | LVT.DELIVERY | LVT.POLARITY | LVT.REMOTE_IRR | LVT.LEVEL;
/** Bits that exist, by LVT entry: timer, thermal, performance, LINT0, LINT1, error. */
const LVT_MASKS = [
  LVT_BASIC,
  LVT_BASIC | LVT.DELIVERY,
  LVT_BASIC | LVT.DELIVERY,
  LVT_LINT,
  LVT_LINT,
  LVT_BASIC,
];
const SPURIOUS_MASK = 0x3ff;
const DIVIDE_MASK = 0xb;
const X2APIC_ICR_RESERVED = 0xfff3_2000n;
const U32 = 0xffff_ffffn;
const TOP_BYTE = 0xff000000 | 0;
const PRIORITY = 0xf0;

export class Lapic {
  /** The registers at their offsets in the page. */
  readonly page = new Int32Array(APIC_PAGE_BYTES / 4);
  readonly timer: LapicTimer;
  readonly vcpu: LapicVcpu;
  /** INIT and SIPI that were not taken yet. */
  initPending = false;
  sipiPending = false;
  sipiVector = 0;
  /** A vector whose EOI user space's IOAPIC must hear of; −1: none. */
  pendingIoapicEoi = -1;
  readonly #controller: InterruptController;

  constructor(vcpu: LapicVcpu, controller: InterruptController) {
    this.vcpu = vcpu;
    this.#controller = controller;
    this.timer = new LapicTimer(this.page, vcpu);
  }

  get hardwareEnabled(): boolean {
    return (this.vcpu.apicBase & APIC_BASE.ENABLE) !== 0n;
  }
  get softwareEnabled(): boolean {
    return (this.register(APIC.SPURIOUS) & SPURIOUS.ENABLED) !== 0;
  }
  get isX2apic(): boolean {
    return (this.vcpu.apicBase & APIC_BASE.X2APIC) !== 0n;
  }
  get address(): number {
    return Number(this.vcpu.apicBase & APIC_BASE.ADDRESS);
  }
  get xapicId(): number {
    return this.register(APIC.ID) >>> 24;
  }
  /** TPR's class, as CR8 shows it. */
  get cr8(): number {
    return (this.register(APIC.TPR) & PRIORITY) >>> 4;
  }

  register(offset: number): number {
    return this.page[offset >>> 2]!;
  }
  setRegister(offset: number, value: number): void {
    this.page[offset >>> 2] = value;
  }

  /** kvm_lapic_reset. `init`: by an INIT; otherwise by power-on, with the base already reset. */
  reset(event: 'power-on' | 'init', lint0: 'extint' | 'masked'): void {
    this.timer.stop();
    if (event === 'power-on') this.setRegister(APIC.ID, this.vcpu.id << 24);
    this.setVersion();
    for (let i = 0; i < LVT_ENTRIES; i++) this.setRegister(APIC.LVT_TIMER + 16 * i, LVT.MASKED);
    this.timer.updateMode();
    if (lint0 === 'extint') this.setRegister(APIC.LVT_LINT0, DELIVERY.EXTINT);
    this.setRegister(APIC.DFR, DFR_FLAT);
    this.setRegister(APIC.SPURIOUS, 0xff);
    if (!this.isX2apic) this.setRegister(APIC.LDR, 0);
    for (const register of [APIC.TPR, APIC.ESR, APIC.ICR, APIC.ICR2, APIC.DIVIDE, APIC.INITIAL_COUNT])
      this.setRegister(register, 0);
    for (let word = 0; word < 8; word++)
      for (const register of [APIC.IRR, APIC.ISR, APIC.TMR]) this.setRegister(register + 16 * word, 0);
    this.timer.updateDivider();
    this.timer.pending = false;
    this.updatePpr();
    this.#controller.mapChanged();
  }

  /** The version register; and what CPUID says of the timer. To be called when CPUID changes. */
  setVersion(): void {
    let version = VERSION | ((LVT_ENTRIES - 1) << 16);
    if (this.vcpu.hasX2apic && this.#controller.advertisesEoiSuppression) version |= VERSION_DIRECTED_EOI;
    this.setRegister(APIC.VERSION, version);
    this.timer.modeMask = LVT.TIMER_PERIODIC | (this.vcpu.hasTscDeadline ? LVT.TIMER_TSC_DEADLINE : 0);
  }

  /** __kvm_apic_set_base: the base was `old` and is what the vCPU has now. */
  baseChanged(old: bigint): void {
    const base = this.vcpu.apicBase;
    const changed = old ^ base;
    if ((changed & APIC_BASE.ENABLE) !== 0n && this.hardwareEnabled)
      this.setRegister(APIC.ID, this.vcpu.id << 24);
    if ((changed & APIC_BASE.X2APIC) !== 0n) {
      if (this.isX2apic) this.#setX2apicId();
      else if (this.hardwareEnabled) this.setRegister(APIC.ID, this.vcpu.id << 24);
    }
    this.#controller.mapChanged();
  }

  // Interrupts.

  /** kvm_apic_has_interrupt: the vector that may be delivered now, or −1. */
  pendingVector(): number {
    if (!this.hardwareEnabled) return -1;
    const vector = highestVector(this.page, APIC.IRR);
    return (vector & PRIORITY) > this.register(APIC.PPR) ? vector : -1;
  }
  /** The processor takes it: from IRR to ISR. */
  acknowledge(vector: number): void {
    clearVector(this.page, APIC.IRR, vector);
    setVector(this.page, APIC.ISR, vector);
    this.updatePpr();
  }
  /** The highest vector that waits, whatever the priority; −1: none. */
  highestRequest(): number {
    return highestVector(this.page, APIC.IRR);
  }
  /** Whether the vector waits or is in service: its EOI is still to come. */
  awaitsEoi(vector: number): boolean {
    return testVector(this.page, APIC.ISR, vector) || testVector(this.page, APIC.IRR, vector);
  }
  /** kvm_apic_accept_pic_intr: whether an external interrupt (user space's PIC) reaches the processor. */
  get acceptsExternal(): boolean {
    if (!this.hardwareEnabled) return true;
    return (this.register(APIC.LVT_LINT0) & (LVT.MASKED | LVT.DELIVERY)) === DELIVERY.EXTINT;
  }
  /** apic_has_pending_timer */
  get timerPending(): boolean {
    const masked = (this.register(APIC.LVT_TIMER) & LVT.MASKED) !== 0;
    return this.timer.pending && !masked && this.hardwareEnabled && this.softwareEnabled;
  }
  /** kvm_inject_apic_timer_irqs, of a timer that is pending. */
  injectTimer(): void {
    this.deliverLocal(APIC.LVT_TIMER);
    this.timer.delivered();
  }

  /** kvm_apic_local_deliver: an interrupt of the APIC's own, by its LVT entry. True if it was accepted. */
  deliverLocal(entry: number): boolean {
    const lvt = this.register(entry);
    if (!this.hardwareEnabled || (lvt & LVT.MASKED) !== 0) return false;
    return this.accept({
      delivery: lvt & LVT.DELIVERY,
      vector: lvt & LVT.VECTOR,
      assert: true,
      level: (lvt & LVT.LEVEL) !== 0,
    });
  }

  /** __apic_accept_irq. False: discarded. */
  accept(message: Pick<InterruptMessage, 'delivery' | 'vector' | 'assert' | 'level'>): boolean {
    const { vector } = message;
    switch (message.delivery) {
      case DELIVERY.LOWEST_PRIORITY:
      case DELIVERY.FIXED:
        if ((message.level && !message.assert) || !this.hardwareEnabled || !this.softwareEnabled)
          return false;
        if (message.level) setVector(this.page, APIC.TMR, vector);
        else clearVector(this.page, APIC.TMR, vector);
        setVector(this.page, APIC.IRR, vector);
        break;
      case DELIVERY.REMOTE_READ:
        // KVM's own use: the target of a paravirtual kick goes on.
        break;
      case DELIVERY.NMI:
        this.vcpu.queueNmi();
        break;
      case DELIVERY.INIT:
        if (message.level && !message.assert) return false;
        this.initPending = true;
        this.sipiPending = false;
        break;
      case DELIVERY.STARTUP:
        this.sipiVector = vector;
        this.sipiPending = true;
        break;
      default:
        // SMI without SMM, and EXTINT, which comes by another way.
        return false;
    }
    this.vcpu.kick();
    return true;
  }

  /** apic_update_ppr: after each change of the task priority or of what is in service. */
  updatePpr(): void {
    const tpr = this.register(APIC.TPR);
    const service = Math.max(highestVector(this.page, APIC.ISR), 0);
    const ppr = (tpr & PRIORITY) >= (service & PRIORITY) ? tpr & 0xff : service & PRIORITY;
    this.setRegister(APIC.PPR, ppr);
  }

  setTpr(value: number): void {
    this.setRegister(APIC.TPR, value & 0xff);
    this.updatePpr();
    this.vcpu.kick();
  }

  /** apic_set_eoi. The interrupt in service with the highest priority ends. */
  eoi(): void {
    const vector = highestVector(this.page, APIC.ISR);
    if (vector < 0) return;
    clearVector(this.page, APIC.ISR, vector);
    this.updatePpr();
    const suppressed = (this.register(APIC.SPURIOUS) & SPURIOUS.SUPPRESS_EOI_BROADCAST) !== 0;
    this.#controller.endOfInterrupt(this, vector, suppressed);
    this.vcpu.kick();
  }

  // Access by the guest.

  /** The xAPIC page. `into` is 1 to 8 bytes at `offset`; what no register answers is left alone. */
  readPage(offset: number, into: Uint8Array): void {
    const value = this.#read(offset, into.length);
    if (value === undefined) return;
    const shifted = value >>> (8 * (offset & 15));
    for (let i = 0; i < into.length; i++) into[i] = shifted >>> (8 * i);
  }

  /** Stores of other than 4 aligned bytes are dropped. */
  writePage(offset: number, from: Uint8Array): void {
    if (from.length !== 4 || (offset & 15) !== 0) return;
    this.writeRegister(offset & 0xff0, from[0]! | (from[1]! << 8) | (from[2]! << 16) | (from[3]! << 24));
  }

  /** An x2APIC MSR, in that mode. `undefined`: #GP. */
  readMsr(offset: number): bigint | undefined {
    if (!this.isX2apic) return undefined;
    if (offset === APIC.ICR) {
      const high = BigInt(this.register(APIC.ICR2) >>> 0);
      return (high << 32n) | BigInt(this.register(APIC.ICR) >>> 0);
    }
    const value = this.#read(offset, 4);
    return value === undefined ? undefined : BigInt(value >>> 0);
  }

  /** False: #GP. */
  writeMsr(offset: number, value: bigint): boolean {
    if (!this.isX2apic) return false;
    if (offset === APIC.ICR) return this.#writeX2apicIcr(value);
    return value <= U32 && this.writeRegister(offset, Number(BigInt.asIntN(32, value)));
  }

  /** 0 as well in another mode of the timer, which forgets it. */
  get tscDeadline(): bigint {
    return this.hardwareEnabled ? this.timer.tscDeadline : 0n;
  }
  set tscDeadline(value: bigint) {
    if (this.hardwareEnabled && this.timer.isTscDeadline) this.timer.startDeadline(value);
  }

  /** kvm_lapic_reg_read. `undefined`: no such register, or an access across it. */
  #read(offset: number, bytes: number): number | undefined {
    if ((offset & 15) + bytes > 4) return undefined;
    const register = offset & 0xff0;
    if (!isReadable(register, this.isX2apic ? 'x2apic' : 'xapic')) return undefined;
    if (register === APIC.ARBITRATION) return 0;
    if (register === APIC.CURRENT_COUNT) return this.timer.currentCount;
    return this.register(register);
  }

  /** kvm_lapic_reg_write. False: no such register, or not in this mode. */
  writeRegister(offset: number, value: number): boolean {
    switch (offset) {
      case APIC.ID:
        return this.#writeXapicOnly(APIC.ID, value & TOP_BYTE);
      case APIC.LDR:
        return this.#writeXapicOnly(APIC.LDR, value & TOP_BYTE);
      case APIC.DFR:
        return this.#writeXapicOnly(APIC.DFR, value | 0x0fffffff);
      case APIC.TPR:
        this.setTpr(value);
        return true;
      case APIC.EOI:
        this.eoi();
        return true;
      case APIC.SPURIOUS:
        this.#writeSpurious(value);
        return true;
      case APIC.ICR: {
        const low = value & ~ICR.BUSY;
        this.#send(low, this.register(APIC.ICR2) >>> 24);
        this.setRegister(APIC.ICR, low);
        return true;
      }
      case APIC.ICR2:
        if (this.isX2apic) return false;
        this.setRegister(APIC.ICR2, value & TOP_BYTE);
        return true;
      case APIC.LVT_TIMER:
        this.#writeLvt(offset, value, LVT_BASIC | this.timer.modeMask);
        this.timer.updateMode();
        return true;
      case APIC.LVT_THERMAL:
      case APIC.LVT_PERFORMANCE:
      case APIC.LVT_LINT0:
      case APIC.LVT_LINT1:
      case APIC.LVT_ERROR:
        this.#writeLvt(offset, value, LVT_MASKS[(offset - APIC.LVT_TIMER) >>> 4]!);
        return true;
      case APIC.INITIAL_COUNT:
        if (this.timer.isTscDeadline) return true;
        this.timer.cancel();
        this.setRegister(APIC.INITIAL_COUNT, value);
        this.timer.start();
        return true;
      case APIC.DIVIDE:
        this.setRegister(APIC.DIVIDE, value & DIVIDE_MASK);
        this.timer.changeDivider();
        return true;
      case APIC.ESR:
        // Of the page nobody asks whether a store was refused.
        return value === 0;
      case APIC.SELF_IPI:
        if (!this.isX2apic || (value & ~LVT.VECTOR) !== 0) return false;
        this.#send(SHORTHAND.SELF | value, 0);
        return true;
      default:
        return false;
    }
  }

  #writeXapicOnly(offset: number, value: number): boolean {
    if (this.isX2apic) return false;
    this.setRegister(offset, value);
    this.#controller.mapChanged();
    return true;
  }

  #writeLvt(offset: number, value: number, mask: number): void {
    this.setRegister(offset, (this.softwareEnabled ? value : value | LVT.MASKED) & mask);
  }

  #writeSpurious(value: number): void {
    const suppress = (this.register(APIC.VERSION) & VERSION_DIRECTED_EOI) !== 0;
    this.setRegister(
      APIC.SPURIOUS,
      value & (SPURIOUS_MASK | (suppress ? SPURIOUS.SUPPRESS_EOI_BROADCAST : 0)),
    );
    this.#controller.mapChanged();
    if (this.softwareEnabled) return;
    for (let i = 0; i < LVT_ENTRIES; i++) this.page[(APIC.LVT_TIMER >>> 2) + 4 * i]! |= LVT.MASKED;
    this.timer.updateMode();
    this.timer.pending = false;
  }

  #writeX2apicIcr(value: bigint): boolean {
    if ((value & X2APIC_ICR_RESERVED) !== 0n) return false;
    const low = Number(BigInt.asIntN(32, value)) & ~ICR.BUSY;
    const destination = Number(value >> 32n);
    this.#send(low, destination);
    this.setRegister(APIC.ICR, low);
    this.setRegister(APIC.ICR2, destination);
    return true;
  }

  /** kvm_apic_send_ipi */
  #send(low: number, destination: number): void {
    this.#controller.deliver(
      {
        vector: low & ICR.VECTOR,
        delivery: low & ICR.DELIVERY,
        logical: (low & ICR.LOGICAL) !== 0,
        assert: (low & ICR.ASSERT) !== 0,
        level: (low & ICR.LEVEL) !== 0,
        shorthand: low & ICR.SHORTHAND,
        destination,
        redirectionHint: false,
      },
      this,
    );
  }

  #setX2apicId(): void {
    this.setRegister(APIC.ID, this.vcpu.id);
    this.setRegister(APIC.LDR, x2apicLdr(this.vcpu.id));
  }
}

/** The logical destination of an x2APIC: its cluster of 16, and its bit in it. */
export const x2apicLdr = (id: number): number => ((id >>> 4) << 16) | (1 << (id & 15));
