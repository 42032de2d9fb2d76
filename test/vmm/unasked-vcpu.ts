/** The ioctls of a vCPU and a VM that a VMM under test has no business with: each throws. */
import type { KvmVcpu } from '../../src/kernel/interface.ts';

type Unasked = Pick<
  KvmVcpu,
  | 'interrupt'
  | 'nmi'
  | 'getVcpuEvents'
  | 'setVcpuEvents'
  | 'getDebugRegs'
  | 'setDebugRegs'
  | 'setGuestDebug'
  | 'getFpu'
  | 'setFpu'
  | 'getXsave'
  | 'getXsave2'
  | 'setXsave'
  | 'getXcrs'
  | 'setXcrs'
  | 'getMsrs'
  | 'setMsrs'
  | 'translate'
  | 'getTscKhz'
  | 'setTscKhz'
>;

export function unasked(): never {
  throw new Error('a VMM does not ask for this');
}

export class UnaskedVcpu implements Unasked {
  interrupt = unasked;
  nmi = unasked;
  getVcpuEvents = unasked;
  setVcpuEvents = unasked;
  getDebugRegs = unasked;
  setDebugRegs = unasked;
  setGuestDebug = unasked;
  getFpu = unasked;
  setFpu = unasked;
  getXsave = unasked;
  getXsave2 = unasked;
  setXsave = unasked;
  getXcrs = unasked;
  setXcrs = unasked;
  getMsrs = unasked;
  setMsrs = unasked;
  translate = unasked;
  getTscKhz = unasked;
  setTscKhz = unasked;
}
