/**
 * The configfs tree of attestation reports (Linux drivers/virt/coco/guest/report.c; sev-guest.c, sev_report_new; Documentation/ABI/testing/configfs-tsm-report):
 * /sys/kernel/config/tsm/report/NAME with inblob, privlevel, privlevel_floor, generation, provider, outblob, auxblob. A report is made when outblob or auxblob is read after
 * inputs changed; whoever shares an entry finds out by `generation`. That blobs are out of date is EWOULDBLOCK inside Linux alone: the same read then makes new ones.
 *
 * Errors are those of that source, where the reference (facts 6.1) has EIO for all that firmware says: what firmware says to the driver by SW_EXITINFO2 is EIO, what it
 * says in its answer is EINVAL or ENXIO.
 *
 * Left out: the SVSM's attributes, and EBUSY after 2^64 writes that nobody read.
 */
import { LinuxError } from '../base/errors.ts';
import type { SevGuest } from './sev-guest.ts';

const INBLOB_MAX = 64;
const USER_DATA_BYTES = 64;
const PRIVLEVEL_MAX = 3;
/** Room for the answer, whose header is 32 bytes. */
const ANSWER_BYTES = 4096;
const REPORT_AT = 32;
const CERTIFICATES_BYTES = 0x4000;
const VMPL_AT = 64;
const REPORT_REQUEST_BYTES = 96;
const ENTRY_BYTES = 24;
/** Statuses of firmware. */
const INVALID_PARAM = 0x16;
const INVALID_KEY = 0x27;
const U32_MAX = 0xffff_ffffn;
const U64_MAX = 0xffff_ffff_ffff_ffffn;

export interface TsmOptions {
  /** Hears what the driver says to the kernel's log. */
  readonly warn?: (text: string) => void;
}

/** The directory `report`. */
export class TsmReports {
  readonly #device: SevGuest;
  readonly #floor: number;
  readonly #warn: (text: string) => void;
  readonly #entries = new Map<string, TsmReport>();

  /** `floor`: the lowest privilege level that may be asked for, which is the number of the driver's VMPCK. */
  constructor(device: SevGuest, floor: number, { warn = () => {} }: TsmOptions = {}) {
    this.#device = device;
    this.#floor = floor;
    this.#warn = warn;
  }

  /** mkdir. Errors: EEXIST, EINVAL (no name of one file). */
  mkdir(name: string): TsmReport {
    if (name === '' || name.includes('/'))
      throw new LinuxError('EINVAL', `tsm report: name ${JSON.stringify(name)}`);
    if (this.#entries.has(name)) throw new LinuxError('EEXIST', `tsm report ${name}: exists`);
    const entry = new TsmReport(this.#device, this.#floor, this.#warn);
    this.#entries.set(name, entry);
    return entry;
  }

  /** Errors: ENOENT. */
  rmdir(name: string): void {
    if (!this.#entries.delete(name)) throw new LinuxError('ENOENT', `tsm report ${name}: does not exist`);
  }

  ls(): string[] {
    return [...this.#entries.keys()];
  }
}

export class TsmReport {
  readonly #device: SevGuest;
  readonly #floor: number;
  readonly #warn: (text: string) => void;
  #inblob: Uint8Array = new Uint8Array(0);
  #privlevel = 0;
  /** Counts writes of inputs. */
  #writeGeneration = 0;
  /** The write that the blobs were made for; none yet. */
  #readGeneration = -1;
  #outblob: Uint8Array = new Uint8Array(0);
  #auxblob: Uint8Array = new Uint8Array(0);
  /** tsm_rwsem: one report at a time. */
  #last: Promise<void> = Promise.resolve();

  constructor(device: SevGuest, floor: number, warn: (text: string) => void) {
    this.#device = device;
    this.#floor = floor;
    this.#warn = warn;
  }

  get provider(): string {
    return 'sev_guest\n';
  }
  get generation(): string {
    return `${this.#writeGeneration}\n`;
  }
  get privlevelFloor(): string {
    return `${this.#floor}\n`;
  }

  /**
   * A file that is opened, written at once and closed (fs/configfs/file.c). Errors: EFBIG (more than 64 bytes; closing it then writes nothing, which counts too). A report
   * needs 64, which is found out when it is made.
   */
  set inblob(bytes: Uint8Array) {
    const fits = bytes.length <= INBLOB_MAX;
    this.#inblob = fits ? bytes.slice() : new Uint8Array(0);
    this.#writeGeneration++;
    if (!fits) throw new LinuxError('EFBIG', `inblob: got ${bytes.length} bytes, want at most ${INBLOB_MAX}`);
  }

  /** Errors: EINVAL (no number; below the floor, above 3), ERANGE (more than 32 bits). 0 where nothing was written, whatever the floor. */
  set privlevel(text: string) {
    const level = kstrtouint(text, 'privlevel');
    if (level < this.#floor || level > PRIVLEVEL_MAX)
      throw new LinuxError('EINVAL', `privlevel: got ${level}, want ${this.#floor} to ${PRIVLEVEL_MAX}`);
    this.#privlevel = level;
    this.#writeGeneration++;
  }

  /**
   * The report. Errors: EINVAL (inblob has not 64 bytes; firmware says INVALID_PARAM or INVALID_KEY), ENXIO (it says something else), ENOMEM (its report is longer than its
   * page), and the device's own.
   */
  async outblob(): Promise<Uint8Array> {
    await this.#refresh();
    return this.#outblob;
  }
  /** The certificate table; empty where the host gave none. Errors: as of outblob. */
  async auxblob(): Promise<Uint8Array> {
    await this.#refresh();
    return this.#auxblob;
  }

  #refresh(): Promise<void> {
    const done = this.#last.then(() => this.#makeReport());
    this.#last = done.catch(() => {});
    return done;
  }

  async #makeReport(): Promise<void> {
    if (this.#readGeneration === this.#writeGeneration) return;
    if (this.#inblob.length !== USER_DATA_BYTES)
      throw new LinuxError('EINVAL', `inblob: it has ${this.#inblob.length} bytes, want ${USER_DATA_BYTES}`);
    const generation = this.#writeGeneration;
    const data = new Uint8Array(REPORT_REQUEST_BYTES);
    data.set(this.#inblob);
    new DataView(data.buffer).setUint32(VMPL_AT, this.#privlevel, true);
    const certificates = new Uint8Array(CERTIFICATES_BYTES);
    const request = { version: 1, data, certificates, certificatesLength: 0, exitInfo2: 0n };
    const answer = new Uint8Array(ANSWER_BYTES);
    answer.set(await this.#device.getExtendedReport(request));
    const view = new DataView(answer.buffer);
    const status = view.getUint32(0, true);
    const size = view.getUint32(4, true);
    if (status === INVALID_PARAM || status === INVALID_KEY)
      throw new LinuxError('EINVAL', `report: firmware's status 0x${status.toString(16)}`);
    if (status !== 0) throw new LinuxError('ENXIO', `report: firmware's status 0x${status.toString(16)}`);
    if (size + REPORT_AT > ANSWER_BYTES)
      throw new LinuxError('ENOMEM', `report: got ${size} bytes, want at most ${ANSWER_BYTES - REPORT_AT}`);
    this.#outblob = answer.slice(REPORT_AT, REPORT_AT + size);
    this.#auxblob = this.#tableOf(certificates);
    this.#readGeneration = generation;
  }

  /** The certificate table as far as its certificates reach; empty where there is none. It ends with an entry of zeros, or with the buffer. */
  #tableOf(bytes: Uint8Array): Uint8Array {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let end = 0;
    let at = 0;
    for (; at + ENTRY_BYTES <= bytes.length; at += ENTRY_BYTES) {
      if (bytes.subarray(at, at + ENTRY_BYTES).every((byte) => byte === 0)) break;
      end = Math.max(end, (view.getUint32(at + 16, true) + view.getUint32(at + 20, true)) >>> 0);
    }
    if (end === 0 && at > 0) this.#warn('certificate slots conveyed without size');
    if (end > bytes.length) this.#warn('certificate data truncated');
    return bytes.slice(0, end);
  }
}

/** lib/kstrtox.c, base 0: decimal, octal with 0 before it, hexadecimal with 0x; a sign and a newline may be there. Errors: EINVAL, ERANGE. */
function kstrtouint(text: string, attribute: string): number {
  const fail = (errno: 'EINVAL' | 'ERANGE'): LinuxError =>
    new LinuxError(errno, `${attribute}: got ${JSON.stringify(text)}, want a number of 32 bits`);
  const [string = ''] = text.split('\0');
  const [, hexadecimal, octal, decimal, rest] =
    /^\+?(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))(.*)$/s.exec(string) ?? [];
  if (rest === undefined) throw fail('EINVAL');
  const value = BigInt(hexadecimal ? `0x${hexadecimal}` : octal ? `0o${octal}` : decimal!);
  if (value > U64_MAX) throw fail('ERANGE');
  if (rest !== '' && rest !== '\n') throw fail('EINVAL');
  if (value > U32_MAX) throw fail('ERANGE');
  return Number(value);
}
