// What OpenMM calls when Platform::loadPluginLibrary opens this library, and how PainnForce becomes
// XML. Python makes the force from XML as well, which is why no SWIG wrapper is needed.
#include <string>

#include "build_stamp.h"
#include "openmm/OpenMMException.h"
#include "openmm/serialization/SerializationNode.h"
#include "openmm/serialization/SerializationProxy.h"
#include "painn_force.h"

using OpenMM::OpenMMException;
using OpenMM::SerializationNode;
using OpenMM::SerializationProxy;

namespace mlff {
namespace {

constexpr int kVersion = 1;

class PainnForceProxy : public SerializationProxy {
 public:
  PainnForceProxy() : SerializationProxy("PainnForce") {}

  void serialize(const void* object, SerializationNode& node) const override {
    const PainnForce& force = *static_cast<const PainnForce*>(object);
    const PainnForce::Options& options = force.options();
    node.setIntProperty("version", kVersion);
    node.setIntProperty("forceGroup", force.getForceGroup());
    node.setStringProperty("name", force.getName());
    node.setStringProperty("model", options.path);
    node.setStringProperty("sha256", options.sha256);
    node.setStringProperty("precision", options.double_precision ? "double" : "single");
    node.setBoolProperty("periodic", options.periodic);
    node.setStringProperty("device", options.device);
    node.setIntProperty("threads", options.threads);
    node.setDoubleProperty("skin", options.skin);
    node.setIntProperty("numParticles", options.num_particles);
    SerializationNode& particles = node.createChildNode("Particles");
    for (size_t i = 0; i < options.particles.size(); ++i) {
      particles.createChildNode("Particle")
          .setIntProperty("index", options.particles[i])
          .setIntProperty("z", static_cast<int>(options.atomic_numbers[i]));
    }
    SerializationNode& bonds = node.createChildNode("Bonds");
    for (const auto& bond : options.bonds) {
      bonds.createChildNode("Bond")
          .setIntProperty("p1", bond.first)
          .setIntProperty("p2", bond.second);
    }
  }

  void* deserialize(const SerializationNode& node) const override {
    if (node.getIntProperty("version") != kVersion) {
      throw OpenMMException("PainnForce: expected version " + std::to_string(kVersion) + ", got " +
                            std::to_string(node.getIntProperty("version")) +
                            "; upgrade mlff_distiller");
    }
    PainnForce::Options options;
    options.path = node.getStringProperty("model");
    options.sha256 = node.getStringProperty("sha256");
    const std::string precision = node.getStringProperty("precision");
    if (precision != "single" && precision != "double") {
      throw OpenMMException("PainnForce: precision must be single or double, got '" + precision +
                            "'; mend the XML or make a new force");
    }
    options.double_precision = precision == "double";
    options.periodic = node.getBoolProperty("periodic");
    options.device = node.getStringProperty("device", "auto");  // not in files of before
    options.threads = node.getIntProperty("threads");
    options.skin = node.getDoubleProperty("skin");
    options.num_particles = node.getIntProperty("numParticles");
    for (const SerializationNode& child : node.getChildNode("Particles").getChildren()) {
      options.particles.push_back(child.getIntProperty("index"));
      options.atomic_numbers.push_back(child.getIntProperty("z"));
    }
    for (const SerializationNode& child : node.getChildNode("Bonds").getChildren()) {
      options.bonds.emplace_back(child.getIntProperty("p1"), child.getIntProperty("p2"));
    }
    PainnForce* force = new PainnForce(std::move(options));
    force->setForceGroup(node.getIntProperty("forceGroup"));
    force->setName(node.getStringProperty("name"));
    return force;
  }
};

}  // namespace

void register_painn_force() {
  static const PainnForceProxy proxy;
  SerializationProxy::registerProxy(typeid(PainnForce), &proxy);
}

}  // namespace mlff

extern "C" __attribute__((visibility("default"))) void registerPlatforms() {}

extern "C" __attribute__((visibility("default"))) void registerKernelFactories() {
  mlff::check_openmm();
  mlff::register_painn_force();
}
