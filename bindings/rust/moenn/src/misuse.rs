//! What must not compile: use after the end, the wrong order, the wrong thread. Each block differs
//! from code that compiles by the line marked.

/// A model is gone once it is dropped: no use after it, no second drop.
///
/// ```no_run
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// model.zero_grad()?;
/// drop(model);
/// # Ok(()) }
/// ```
///
/// ```compile_fail,E0382
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// drop(model);
/// model.zero_grad()?; // here
/// # Ok(()) }
/// ```
///
/// ```compile_fail,E0382
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// drop(model);
/// drop(model); // here
/// # Ok(()) }
/// ```
///
/// A parameter's view does not outlive its model, nor a moment's its optimizer.
///
/// ```compile_fail,E0505
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// let head = model.parameter("lm_head.weight")?;
/// drop(model); // here
/// head.to_vec::<f32>()?;
/// # Ok(()) }
/// ```
///
/// ```compile_fail,E0505
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// let adam = Optimizer::new(&model, &OptimizerOptions::default())?;
/// let moment = adam.moment("lm_head.weight", Moment::First)?;
/// drop(adam); // here
/// moment.to_vec::<f32>()?;
/// # Ok(()) }
/// ```
///
/// Nor does a borrowing optimizer outlive its model.
///
/// ```compile_fail,E0505
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// let mut adam = Optimizer::new(&model, &OptimizerOptions::default())?;
/// drop(model); // here
/// adam.step(1e-3)?;
/// # Ok(()) }
/// ```
///
/// A wrapped slice is lent for as long as its view lives, and so is what a view of the view sees.
///
/// ```compile_fail,E0502
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let device = Device::cpu()?;
/// let mut data = [0f32; 4];
/// let view = Tensor::wrap(&device, &mut data, &[4])?.slice(0, 1, 3)?;
/// assert_eq!(data[0], 0.0); // here
/// view.copy_in(&[1f32, 2.0])?;
/// # Ok(()) }
/// ```
///
/// A tensor cannot be swapped out of its borrow.
///
/// ```compile_fail,E0596
/// # use moenn::*;
/// fn swap(view: &mut TensorView<'_>, tensor: &mut Tensor) {
///     std::mem::swap(&mut **view, tensor) // here
/// }
/// ```
pub struct Lifetimes;

/// A model may move to another thread, but not while something here borrows it.
///
/// ```compile_fail,E0505
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// let mut adam = Optimizer::new(&model, &OptimizerOptions::default())?;
/// std::thread::spawn(move || model.zero_grad()); // here
/// adam.step(1e-3)?;
/// # Ok(()) }
/// ```
///
/// Two threads cannot use one model, one model and its optimizer, or one tensor.
///
/// ```compile_fail,E0277
/// fn sync<T: Sync>() {}
/// sync::<moenn::Model>();
/// ```
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<moenn::Optimizer<&moenn::Model>>();
/// ```
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<moenn::Optimizer<std::rc::Rc<moenn::Model>>>();
/// ```
///
/// ```compile_fail,E0277
/// fn sync<T: Sync>() {}
/// sync::<moenn::Optimizer<moenn::Model>>();
/// ```
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<moenn::TensorView<'static>>();
/// ```
///
/// ```compile_fail,E0277
/// fn sync<T: Sync>() {}
/// sync::<moenn::TensorView<'static>>();
/// ```
///
/// ```compile_fail,E0277
/// fn sync<T: Sync>() {}
/// sync::<moenn::Tensor>();
/// ```
///
/// ```compile_fail,E0277
/// fn sync<T: Sync>() {}
/// sync::<moenn::Session>();
/// ```
///
/// ```compile_fail,E0277
/// fn sync<T: Sync>() {}
/// sync::<moenn::Dataset>();
/// ```
///
/// A progress closure cannot use the model that is being saved.
///
/// ```compile_fail,E0277
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// # let flow = std::ops::ControlFlow::Continue(());
/// let mut progress = |_, _| { model.zero_grad().ok(); flow }; // here
/// model.save("folder", FileOptions { progress: Some(&mut progress), ..Default::default() })?;
/// # Ok(()) }
/// ```
///
/// Nor a token closure the session that generates.
///
/// ```compile_fail,E0499
/// # use moenn::*;
/// # fn main() -> Result<()> {
/// # let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
/// # let flow = std::ops::ControlFlow::Continue(());
/// let mut session = Session::new(&model, &SessionOptions::default())?;
/// session.generate(0, &[1], &GenerateOptions::default(), |_| {
///     session.truncate(0, 0).ok(); // here
///     flow
/// })?;
/// # Ok(()) }
/// ```
///
/// Holding a model in a way of one's own is not possible: it could smuggle one to another thread.
///
/// ```compile_fail,E0277
/// struct Mine;
/// impl moenn::HoldsModel for Mine {
///     fn model(&self) -> &moenn::Model { unimplemented!() }
/// }
/// ```
pub struct Threads;
