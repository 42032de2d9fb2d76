/**
 * A 16550A UART (National Semiconductor PC16550D; QEMU hw/char/serial.c): it transmits at once. Its interrupt line is up while its identification
 * register names a reason. Leaves out: baud rate timing, break, parity, line errors.
 */
import type { MemoryRegionOps } from '../memory/memory-region.ts';

export const SERIAL_PORT = 0x3f8;
export const SERIAL_PORTS = 8;

// Registers, by offset. The first two are the divisor while LCR.DLAB is set.
const DATA = 0;
const IER = 1;
const IIR_FCR = 2;
const LCR = 3;
const MCR = 4;
const LSR = 5;
const MSR = 6;
const SCRATCH = 7;

const IER_RECEIVED = 0x01;
const IER_TRANSMIT_EMPTY = 0x02;
const IER_MODEM = 0x08;

const IIR_NONE = 0x01;
const IIR_MODEM = 0x00;
const IIR_TRANSMIT_EMPTY = 0x02;
const IIR_RECEIVED = 0x04;
const IIR_FIFO_ENABLED = 0xc0;

const FCR_ENABLE = 0x01;
const FCR_CLEAR_RECEIVE = 0x02;

const LCR_DLAB = 0x80;

const MCR_DTR = 0x01;
const MCR_RTS = 0x02;
const MCR_OUT1 = 0x04;
const MCR_OUT2 = 0x08;
const MCR_LOOPBACK = 0x10;

const LSR_DATA_READY = 0x01;
const LSR_OVERRUN = 0x02;
/** Holding register and transmitter are empty: always, for a byte leaves at once. */
const LSR_TRANSMIT_EMPTY = 0x60;

const MSR_CTS = 0x10;
const MSR_DSR = 0x20;
const MSR_RI = 0x40;
const MSR_DCD = 0x80;
const MSR_DELTAS = 0x0f;

const FIFO_BYTES = 16;

export class Serial16550 implements MemoryRegionOps {
  readonly maxAccessSize = 1;
  readonly #transmit: (byte: number) => void;
  readonly #received: number[] = [];
  #divisor = 12;
  #ier = 0;
  #fcr = 0;
  #lcr = 0;
  #mcr = MCR_OUT2;
  #scratch = 0;
  #lsr = LSR_TRANSMIT_EMPTY;
  #msr = MSR_DCD | MSR_DSR | MSR_CTS;
  /** The transmitter became empty and nobody has looked yet. */
  #transmitPending = false;
  readonly #interrupt: ((level: 0 | 1) => void) | undefined;
  #line: 0 | 1 = 0;

  /** `transmit` gets each byte as the guest sends it; `interrupt` each change of the interrupt line. */
  constructor(options: { transmit: (byte: number) => void; interrupt?: (level: 0 | 1) => void }) {
    this.#transmit = options.transmit;
    this.#interrupt = options.interrupt;
  }

  /** A byte from the line. One that finds no room is lost, and the line status says so. */
  receive(byte: number): void {
    const room = (this.#fcr & FCR_ENABLE) !== 0 ? FIFO_BYTES : 1;
    if (this.#received.length >= room) {
      this.#lsr |= LSR_OVERRUN;
      return;
    }
    this.#received.push(byte);
    this.#lsr |= LSR_DATA_READY;
    this.#updateLine();
  }

  read(offset: number): number {
    const value = this.#read(offset);
    this.#updateLine();
    return value;
  }

  #read(offset: number): number {
    switch (offset) {
      case DATA:
        return (this.#lcr & LCR_DLAB) !== 0 ? this.#divisor & 0xff : this.#takeReceived();
      case IER:
        return (this.#lcr & LCR_DLAB) !== 0 ? this.#divisor >>> 8 : this.#ier;
      case IIR_FCR:
        return this.#identify();
      case LCR:
        return this.#lcr;
      case MCR:
        return this.#mcr;
      case LSR: {
        const value = this.#lsr;
        this.#lsr &= ~LSR_OVERRUN;
        return value;
      }
      case MSR: {
        const value = this.#msr;
        this.#msr &= ~MSR_DELTAS;
        return value;
      }
      default:
        return this.#scratch;
    }
  }

  write(offset: number, value: number): void {
    this.#write(offset, value);
    this.#updateLine();
  }

  #write(offset: number, value: number): void {
    switch (offset) {
      case DATA:
        if ((this.#lcr & LCR_DLAB) !== 0) this.#divisor = (this.#divisor & 0xff00) | value;
        else this.#send(value);
        break;
      case IER:
        if ((this.#lcr & LCR_DLAB) !== 0) {
          this.#divisor = (this.#divisor & 0xff) | (value << 8);
        } else {
          if ((value & ~this.#ier & IER_TRANSMIT_EMPTY) !== 0) this.#transmitPending = true;
          this.#ier = value & 0x0f;
        }
        break;
      case IIR_FCR:
        if (((value ^ this.#fcr) & FCR_ENABLE) !== 0 || (value & FCR_CLEAR_RECEIVE) !== 0) {
          this.#received.length = 0;
          this.#lsr &= ~LSR_DATA_READY;
        }
        this.#fcr = value & 0xc9;
        break;
      case LCR:
        this.#lcr = value;
        break;
      case MCR:
        this.#setModemControl(value & 0x1f);
        break;
      case SCRATCH:
        this.#scratch = value;
        break;
      default:
      // Line and modem status are read-only.
    }
  }

  #send(byte: number): void {
    if ((this.#mcr & MCR_LOOPBACK) !== 0) this.receive(byte);
    else this.#transmit(byte);
    this.#transmitPending = true;
  }

  #takeReceived(): number {
    const byte = this.#received.shift() ?? 0;
    if (this.#received.length === 0) this.#lsr &= ~LSR_DATA_READY;
    return byte;
  }

  /** The most urgent reason that is enabled. Naming the transmitter takes that reason away. */
  #identify(): number {
    const fifo = (this.#fcr & FCR_ENABLE) !== 0 ? IIR_FIFO_ENABLED : 0;
    const reason = this.#reason;
    if (reason === IIR_TRANSMIT_EMPTY) this.#transmitPending = false;
    return fifo | reason;
  }

  get #reason(): number {
    if ((this.#ier & IER_RECEIVED) !== 0 && (this.#lsr & LSR_DATA_READY) !== 0) return IIR_RECEIVED;
    if ((this.#ier & IER_TRANSMIT_EMPTY) !== 0 && this.#transmitPending) return IIR_TRANSMIT_EMPTY;
    if ((this.#ier & IER_MODEM) !== 0 && (this.#msr & MSR_DELTAS) !== 0) return IIR_MODEM;
    return IIR_NONE;
  }

  #updateLine(): void {
    if (this.#interrupt === undefined) return;
    const line = this.#reason === IIR_NONE ? 0 : 1;
    if (line === this.#line) return;
    this.#line = line;
    this.#interrupt(line);
  }

  /** In loop-back the modem's inputs are this end's outputs. */
  #setModemControl(value: number): void {
    this.#mcr = value;
    const lines =
      (value & MCR_LOOPBACK) === 0
        ? MSR_DCD | MSR_DSR | MSR_CTS
        : ((value & MCR_RTS) !== 0 ? MSR_CTS : 0) |
          ((value & MCR_DTR) !== 0 ? MSR_DSR : 0) |
          ((value & MCR_OUT1) !== 0 ? MSR_RI : 0) |
          ((value & MCR_OUT2) !== 0 ? MSR_DCD : 0);
    const changed = (this.#msr ^ lines) & 0xf0;
    // RI marks its trailing edge alone.
    const deltas = (changed & ~(lines & MSR_RI)) >>> 4;
    this.#msr = lines | (this.#msr & MSR_DELTAS) | deltas;
  }
}
