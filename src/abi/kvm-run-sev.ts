/**
 * Exits of encrypted guests in `struct kvm_run` (reference facts 1.2, 5.2, 5.6): SYSTEM_EVENT, SNP_REQ_CERTS, and VMGEXIT, the early form of the latter (seed 001). Beside
 * `KvmRun`, over the same bytes.
 */
/** Offsets from the start of kvm_run. */
const SYSTEM_EVENT = { TYPE: 0x20, NDATA: 0x24, DATA: 0x28 } as const;
const REQ_CERTS = { GPA: 0x20, NPAGES: 0x28, RET: 0x30 } as const;
const VMGEXIT = {
  TYPE: 0x20,
  DATA_GPA: 0x28,
  DATA_NPAGES: 0x30,
  RET: 0x38,
  FLAGS: 0x3c,
  STATUS: 0x3d,
} as const;
const HEAD_BYTES = 0x200;

export class SevExits {
  readonly #view: DataView;

  /** `bytes`: the mapping of a vCPU. */
  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, HEAD_BYTES);
  }

  get systemEventType(): number {
    return this.#view.getUint32(SYSTEM_EVENT.TYPE, true);
  }
  /** SYSTEM_EVENT with one datum. */
  setSystemEvent(type: number, data: bigint): void {
    this.#view.setUint32(SYSTEM_EVENT.TYPE, type, true);
    this.#view.setUint32(SYSTEM_EVENT.NDATA, 1, true);
    this.#view.setBigUint64(SYSTEM_EVENT.DATA, data, true);
  }
  get systemEventNdata(): number {
    return this.#view.getUint32(SYSTEM_EVENT.NDATA, true);
  }
  systemEventData(index: number): bigint {
    return this.#view.getBigUint64(SYSTEM_EVENT.DATA + 8 * index, true);
  }

  get reqCertsGpa(): bigint {
    return this.#view.getBigUint64(REQ_CERTS.GPA, true);
  }
  set reqCertsGpa(value: bigint) {
    this.#view.setBigUint64(REQ_CERTS.GPA, value, true);
  }
  get reqCertsNpages(): bigint {
    return this.#view.getBigUint64(REQ_CERTS.NPAGES, true);
  }
  set reqCertsNpages(value: bigint) {
    this.#view.setBigUint64(REQ_CERTS.NPAGES, value, true);
  }
  /** 0, or a (positive) errno. */
  get reqCertsRet(): bigint {
    return this.#view.getBigUint64(REQ_CERTS.RET, true);
  }
  set reqCertsRet(value: bigint) {
    this.#view.setBigUint64(REQ_CERTS.RET, value, true);
  }

  get vmgexitType(): number {
    return this.#view.getUint32(VMGEXIT.TYPE, true);
  }
  set vmgexitType(value: number) {
    this.#view.setUint32(VMGEXIT.TYPE, value, true);
  }
  get vmgexitDataGpa(): bigint {
    return this.#view.getBigUint64(VMGEXIT.DATA_GPA, true);
  }
  set vmgexitDataGpa(value: bigint) {
    this.#view.setBigUint64(VMGEXIT.DATA_GPA, value, true);
  }
  get vmgexitDataNpages(): bigint {
    return this.#view.getBigUint64(VMGEXIT.DATA_NPAGES, true);
  }
  set vmgexitDataNpages(value: bigint) {
    this.#view.setBigUint64(VMGEXIT.DATA_NPAGES, value, true);
  }
  get vmgexitRet(): number {
    return this.#view.getUint32(VMGEXIT.RET, true);
  }
  set vmgexitRet(value: number) {
    this.#view.setUint32(VMGEXIT.RET, value, true);
  }
  /** Bit 0: user space wants to hear when the request is done. */
  get vmgexitFlags(): number {
    return this.#view.getUint8(VMGEXIT.FLAGS);
  }
  set vmgexitFlags(value: number) {
    this.#view.setUint8(VMGEXIT.FLAGS, value);
  }
  /** 0 pending, 1 done. */
  get vmgexitStatus(): number {
    return this.#view.getUint8(VMGEXIT.STATUS);
  }
  set vmgexitStatus(value: number) {
    this.#view.setUint8(VMGEXIT.STATUS, value);
  }
}
