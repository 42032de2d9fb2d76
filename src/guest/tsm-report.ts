/**
 * The configfs tree of attestation reports (Linux drivers/virt/coco/guest/report.c, Documentation/ABI/testing/configfs-tsm-report; sev-guest.c, sev_report_new):
 * /sys/kernel/config/tsm/report/NAME with inblob, privlevel, privlevel_floor, generation, provider, outblob, auxblob. A report is made when outblob or auxblob is read after
 * inputs changed; whoever shares an entry finds out by `generation`.
 */
import { LinuxError } from '../base/errors.ts';
import type { SevGuest } from './sev-guest.ts';

const INBLOB_MAX = 64;
const PRIVLEVEL_MAX = 3;
const REPORT_AT = 0x20;
const CERTIFICATES_BYTES = 0x4000;
const VMPL_AT = 64;
const REPORT_REQUEST_BYTES = 96;
const EMPTY_ENTRY_BYTES = 24;

/** The directory `report`. */
export class TsmReports {
  readonly #device: SevGuest;
  readonly #floor: number;
  readonly #entries = new Map<string, TsmReport>();

  /** `floor`: the lowest privilege level that may be asked for, which is the driver's VMPL. */
  constructor(device: SevGuest, floor: number) {
    this.#device = device;
    this.#floor = floor;
  }

  /** mkdir. Errors: EEXIST, EINVAL (no name of one file). */
  mkdir(name: string): TsmReport {
    if (name === '' || name.includes('/'))
      throw new LinuxError('EINVAL', `tsm report: name ${JSON.stringify(name)}`);
    if (this.#entries.has(name)) throw new LinuxError('EEXIST', `tsm report ${name}: exists`);
    const entry = new TsmReport(this.#device, this.#floor);
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
  #inblob: Uint8Array = new Uint8Array(0);
  #privlevel: number;
  /** Counts writes of inputs. */
  #writeGeneration = 0;
  /** The write that the blobs were made for. */
  #readGeneration = -1;
  #outblob: Uint8Array = new Uint8Array(0);
  #auxblob: Uint8Array = new Uint8Array(0);

  constructor(device: SevGuest, floor: number) {
    this.#device = device;
    this.#floor = floor;
    this.#privlevel = floor;
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

  /** Errors: EINVAL (more than 64 bytes). */
  set inblob(bytes: Uint8Array) {
    if (bytes.length > INBLOB_MAX)
      throw new LinuxError('EINVAL', `inblob: got ${bytes.length} bytes, want at most ${INBLOB_MAX}`);
    this.#inblob = bytes.slice();
    this.#writeGeneration++;
  }

  /** Errors: EINVAL (below the floor, above 3). */
  set privlevel(text: string) {
    const level = /^[0-9]+\n?$/.test(text) ? Number(text) : Number.NaN;
    if (!(level >= this.#floor && level <= PRIVLEVEL_MAX))
      throw new LinuxError(
        'EINVAL',
        `privlevel: got ${JSON.stringify(text)}, want ${this.#floor} to ${PRIVLEVEL_MAX}`,
      );
    this.#privlevel = level;
    this.#writeGeneration++;
  }

  /** The report. Errors: EINVAL (nothing was written to inblob), EWOULDBLOCK and the device's own. */
  async outblob(): Promise<Uint8Array> {
    await this.#refresh();
    return this.#outblob;
  }
  /** The certificate table; empty where the host gave none. */
  async auxblob(): Promise<Uint8Array> {
    await this.#refresh();
    return this.#auxblob;
  }

  async #refresh(): Promise<void> {
    if (this.#readGeneration === this.#writeGeneration) return;
    if (this.#inblob.length === 0) throw new LinuxError('EINVAL', 'inblob: nothing was written to it');
    const generation = this.#writeGeneration;
    const data = new Uint8Array(REPORT_REQUEST_BYTES);
    data.set(this.#inblob);
    new DataView(data.buffer).setUint32(VMPL_AT, this.#privlevel, true);
    const certificates = new Uint8Array(CERTIFICATES_BYTES);
    const request = { version: 1, data, certificates, certificatesLength: 0, exitInfo2: 0n };
    const response = await this.#device.getExtendedReport(request);
    const view = new DataView(response.buffer);
    const status = view.getUint32(0, true);
    const size = view.getUint32(4, true);
    if (status !== 0 || size > response.length - REPORT_AT)
      throw new LinuxError('EIO', `report: firmware's status ${status}, ${size} bytes`);
    this.#outblob = response.slice(REPORT_AT, REPORT_AT + size);
    this.#auxblob = tableOf(certificates);
    this.#readGeneration = generation;
  }
}

/** The certificate table as far as it reaches; empty where there is no certificate in it. */
function tableOf(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = 0;
  for (let at = 0; at + EMPTY_ENTRY_BYTES <= bytes.length; at += EMPTY_ENTRY_BYTES) {
    if (bytes.subarray(at, at + EMPTY_ENTRY_BYTES).every((byte) => byte === 0))
      return end === 0 ? new Uint8Array(0) : bytes.slice(0, Math.max(end, at + EMPTY_ENTRY_BYTES));
    const past = view.getUint32(at + 16, true) + view.getUint32(at + 20, true);
    if (past > bytes.length)
      throw new LinuxError(
        'EIO',
        `certificate table: an entry ends at ${past}, the buffer at ${bytes.length}`,
      );
    end = Math.max(end, past);
  }
  throw new LinuxError('EIO', 'certificate table: no end');
}
